//! Which kernels of PTX files this crate can decode: `check FILE...` prints the first instruction of each that it does not know.

fn main() {
    for path in std::env::args().skip(1) {
        let result = std::fs::read_to_string(&path).map_err(|e| e.to_string());
        let result = result.and_then(|text| ptx::Module::parse(&text).map_err(|e| e.to_string()));
        match result.and_then(|m| m.check().map_err(|e| e.to_string())) {
            Ok(()) => println!("{path}: ok"),
            Err(e) => println!("{path}: {e}"),
        }
    }
}
