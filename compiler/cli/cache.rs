//! Where compiled artefacts are kept, by content: the same model, options and compiler find the same file.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// `$LOOPC_CACHE`, else `$XDG_CACHE_HOME/loopc`, else `~/.cache/loopc`.
pub fn folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("LOOPC_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("loopc")))
        .or_else(|| set("HOME").map(|d| d.join(".cache").join("loopc")))
        .unwrap_or_else(|| std::env::temp_dir().join("loopc"))
}

/// The file for these facts; it need not exist yet.
pub fn file(facts: &[&str]) -> PathBuf {
    let mut hash = Sha256::new();
    for fact in facts.iter().copied().chain([compiler_identity().as_str()]) {
        hash.update((fact.len() as u64).to_le_bytes());
        hash.update(fact);
    }
    folder().join(format!("{}.loopc", hex(&hash.finalize()[..16])))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Changes with every build of the compiler: an artefact of another build is never taken from the cache.
fn compiler_identity() -> String {
    let built = std::env::current_exe()
        .and_then(std::fs::metadata)
        .and_then(|m| Ok((m.len(), m.modified()?)));
    format!("{} {built:?}", env!("CARGO_PKG_VERSION"))
}

/// Writes a file of the cache, whole or not at all.
pub fn put(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder())?;
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, path)
}
