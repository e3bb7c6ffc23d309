//! The artefact as a file. Nothing of it is believed before the hash and the header's indices are checked.
//!
//!     magic "loopc\0\0\2"  | header length, u64 little-endian | header, JSON | payload | sha256 of all before

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::artefact::Header;
use crate::error::RuntimeError;
use crate::validate::validate;
use crate::weights::write_whole;

/// The last byte is the format's version.
const MAGIC: [u8; 8] = *b"loopc\0\0\x02";
const HASH: usize = 32;

/// A compiled model in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Artefact {
    pub header: Header,
    /// The machine codes, one after the other.
    pub payload: Vec<u8>,
}

impl Artefact {
    /// Whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), RuntimeError> {
        let bytes = self.to_bytes().map_err(|reason| RuntimeError::File {
            path: path.to_path_buf(),
            reason,
        })?;
        write_whole(path, &[&bytes])
    }

    pub fn open(path: &Path) -> Result<Artefact, RuntimeError> {
        let bytes = std::fs::read(path).map_err(|e| RuntimeError::File {
            path: path.to_path_buf(),
            reason: format!("cannot read it: {e}"),
        })?;
        Artefact::from_bytes(&bytes).map_err(|reason| RuntimeError::Artefact {
            path: path.to_path_buf(),
            reason,
        })
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let header = serde_json::to_vec(&self.header).map_err(|e| e.to_string())?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header);
        bytes.extend(&self.payload);
        let hash = Sha256::digest(&bytes);
        bytes.extend(hash);
        Ok(bytes)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Artefact, String> {
        if bytes.len() < MAGIC.len() || bytes[..7] != MAGIC[..7] {
            return Err("it is no loopc artefact".to_string());
        }
        if bytes[7] != MAGIC[7] {
            return Err(format!(
                "it has format version {}, this loopc reads {}",
                bytes[7], MAGIC[7]
            ));
        }
        if bytes.len() < 16 + HASH {
            return Err("it is truncated".to_string());
        }
        let (body, hash) = bytes.split_at(bytes.len() - HASH);
        if Sha256::digest(body)[..] != *hash {
            return Err("its checksum is wrong: truncated or damaged".to_string());
        }
        let length = u64::from_le_bytes(std::array::from_fn(|i| body[8 + i]));
        let end = usize::try_from(length)
            .ok()
            .and_then(|n| n.checked_add(16))
            .filter(|end| *end <= body.len());
        let Some(end) = end else {
            return Err("its header is longer than the file".to_string());
        };
        let header: Header = serde_json::from_slice(&body[16..end]).map_err(|e| format!("its header: {e}"))?;
        let artefact = Artefact {
            header,
            payload: body[end..].to_vec(),
        };
        validate(&artefact)?;
        Ok(artefact)
    }
}

/// Which of these CPU features this machine lacks. Names we do not know count as lacking.
pub fn missing_features(features: &[String]) -> Vec<String> {
    features.iter().filter(|f| !has_feature(f)).cloned().collect()
}

#[cfg(target_arch = "x86_64")]
fn has_feature(name: &str) -> bool {
    match name {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "f16c" => is_x86_feature_detected!("f16c"),
        "bmi2" => is_x86_feature_detected!("bmi2"),
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512dq" => is_x86_feature_detected!("avx512dq"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512bf16" => is_x86_feature_detected!("avx512bf16"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_feature(_: &str) -> bool {
    false
}
