//! PTX of the kernels of plan files (as JSON lines of `Kernel`) or of a graph's entries, for looking at.
use compiler::{Target, gpu};
fn main() {
    let path = std::env::args().nth(1).expect("a graph file");
    let only = std::env::args().nth(2);
    let text = std::fs::read_to_string(path).unwrap();
    let mut module = ir::text::parse(&text).unwrap();
    for pass in passes::Program::fused().steps().unwrap() {
        (pass.run)(&mut module).unwrap();
    }
    let Target::Gpu(target) = Target::by_name("sm_90a").unwrap() else {
        return;
    };
    let mut kernels = vec![];
    for f in ["prefill", "decode", "logits", "loss"] {
        if module.function(f).is_some() {
            for k in passes::schedule(&module, f, &passes::Program::fused().scheduling)
                .unwrap()
                .kernels
            {
                if k.contraction.is_none()
                    && k.sweep.is_none()
                    && only.as_ref().is_none_or(|o| k.name == *o)
                    && !kernels.iter().any(|x: &ir::plan::Kernel| x.name == k.name)
                {
                    kernels.push(k);
                }
            }
        }
    }
    let (c, how) = gpu::compile_kernels(&kernels, &target, true).unwrap();
    eprintln!("{how:#?}");
    println!("{}", String::from_utf8_lossy(&c.code));
}
