//! Artefacts in files: what was written is read, what was damaged is refused, and nothing panics.

use proptest::prelude::*;
use runtime::artefact::{
    Buffer, Code, DType, Entry, Header, Launch, Layout, Port, Size, Source, State, TensorRef, Weight,
};
use runtime::container::Artefact;
use sha2::{Digest, Sha256};

fn artefact() -> Artefact {
    let size = |coef: i64, syms: &[&str]| Size {
        coef,
        syms: syms.iter().map(|s| s.to_string()).collect(),
    };
    let port = Port {
        name: "tokens".into(),
        dtype: DType::I32,
        shape: vec![size(1, &["B"]), size(1, &["T"])],
        buffer: 0,
    };
    let tensor = TensorRef {
        name: "w".into(),
        shape: vec![65, 3],
        scale: None,
    };
    let header = Header {
        producer: "test".into(),
        model_hash: "0".into(),
        model: serde_json::json!({}),
        max_context: 8,
        weights: vec![Weight {
            source: Source::Tensors(vec![tensor]),
            dtype: DType::BF16,
            layout: Layout::Panels { pair: 2 },
        }],
        states: vec![State {
            name: "k".into(),
            dtype: DType::F32,
            shape: vec![size(4, &["B", "C"])],
        }],
        entries: vec![Entry {
            name: "decode".into(),
            inputs: vec![port.clone()],
            outputs: vec![],
            slots: vec![vec![size(64, &["T"])]],
            buffers: vec![Buffer::Input(0), Buffer::Slot(0), Buffer::Weight(0), Buffer::State(0)],
            launches: vec![Launch {
                kernel: "k".into(),
                buffers: vec![0, 3],
                tiles: vec![(size(1, &["B"]), 4)],
                scratch: size(64, &[]),
            }],
        }],
        codes: vec![Code {
            target: "x86-64-v3".into(),
            features: vec!["avx2".into()],
            offset: 2,
            len: 3,
            kernels: vec![],
            joins: vec![],
        }],
    };
    Artefact {
        header,
        payload: vec![1, 2, 3, 4, 5],
    }
}

/// The header's JSON changed, the checksum made right again: what a careless or hostile writer could make.
fn with_header(change: impl Fn(String) -> String) -> Vec<u8> {
    let bytes = artefact().to_bytes().unwrap();
    let length = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(bytes[16..16 + length].to_vec()).unwrap());
    let mut out = bytes[..8].to_vec();
    out.extend((header.len() as u64).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(&bytes[16 + length..bytes.len() - 32]);
    let hash = Sha256::digest(&out);
    out.extend(hash);
    out
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.loopc");
    artefact().write(&path).unwrap();
    assert_eq!(Artefact::open(&path).unwrap(), artefact());
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing lies beside it"
    );
}

#[test]
fn indices_and_sizes_are_checked_before_anything_runs() {
    assert!(Artefact::from_bytes(&with_header(|h| h)).is_ok());
    for (from, to, word) in [
        ("\"slot\":0", "\"slot\":1", "slot 1 of 1"),
        ("\"weight\":0", "\"weight\":7", "weight 7 of 1"),
        ("\"state\":0", "\"state\":1", "state 1 of 1"),
        ("\"buffers\":[0,3]", "\"buffers\":[0,4]", "buffer 4 of 4"),
        (
            "\"coef\":64,\"syms\":[\"T\"]",
            "\"coef\":-64,\"syms\":[\"T\"]",
            "out of range",
        ),
        (
            "\"coef\":64,\"syms\":[\"T\"]",
            "\"coef\":64,\"syms\":[\"X\"]",
            "symbol X",
        ),
        ("\"shape\":[65,3]", "\"shape\":[65,4000000000000000000]", "out of range"),
        ("\"pair\":2", "\"pair\":0", "side by side"),
        ("\"len\":3", "\"len\":4", "outside"),
        ("\"offset\":2", "\"offset\":18446744073709551615", "outside"),
        ("\"max_context\":8", "\"max_context\":0", "no context"),
        (",4]]", ",0]]", "blocks of 0"),
    ] {
        let bytes = with_header(|h| {
            assert!(h.contains(from), "{from} in {h}");
            h.replacen(from, to, 1)
        });
        let error = Artefact::from_bytes(&bytes).unwrap_err();
        assert!(error.contains(word), "{from} -> {to}: {error}");
    }
}

proptest! {
    #[test]
    fn flipped_or_cut_bytes_are_refused(at in 0usize..4096, bit in 0u8..8, cut in prop::option::of(0usize..4096)) {
        let mut bytes = artefact().to_bytes().unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Some(cut) = cut {
            bytes.truncate(cut % bytes.len());
        }
        prop_assert!(Artefact::from_bytes(&bytes).is_err());
    }

    /// With a right checksum a changed header is refused or sound; it never panics.
    #[test]
    fn changed_headers_never_panic(at in 0usize..4096, byte in 0x20u8..0x7f) {
        let bytes = with_header(|h| {
            let mut h = h.into_bytes();
            let at = at % h.len();
            h[at] = byte;
            String::from_utf8(h).unwrap()
        });
        let _ = Artefact::from_bytes(&bytes);
    }
}
