//! Artefacts in files: what was written is read, what was damaged is refused, and nothing panics.

use proptest::prelude::*;
use runtime::artefact::{
    Buffer, Code, DType, Entry, GpuKernel, Header, Join, Launch, Layout, MapSource, Port, Size, Source, State, Step,
    TensorMap, TensorRef, Variant, Weight,
};
use runtime::container::Artefact;
use sha2::{Digest, Sha256};

fn size(coef: i64, syms: &[&str]) -> Size {
    Size {
        coef,
        syms: syms.iter().map(|s| s.to_string()).collect(),
    }
}

/// Everything that a GPU's kernel may have.
fn gpu_kernel(name: &str) -> GpuKernel {
    let map = |source| TensorMap {
        source,
        dtype: DType::BF16,
        offset: size(0, &[]),
        dims: vec![size(4096, &[]), size(1, &["B"])],
        strides: vec![size(4096, &[])],
        r#box: vec![65, 129],
        swizzle: 128,
    };
    let step = Step {
        function: "k_0".into(),
        buffers: Some(vec![1, 0]),
        workspaces: Some(vec![0, 0, 0]),
        tiles: vec![(size(1, &["B"]), 17)],
        more_tiles: vec![vec![(size(1, &["B"]), 19)]],
        per_multiprocessor: 3,
        threads: 384,
        shared: 200_000,
        cluster: 2,
        overlap: true,
        maps: vec![map(MapSource::Buffer(1)), map(MapSource::Workspace(0))],
    };
    let variant = |at_most| Variant {
        at_most,
        workspaces: vec![size(1024, &["B"])],
        counters: 5,
        steps: vec![step.clone()],
        ..Variant::default()
    };
    GpuKernel {
        name: name.into(),
        variants: vec![variant(Some((size(1, &["B"]), 9))), variant(None)],
    }
}

fn artefact() -> Artefact {
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
            launches: vec![
                Launch {
                    kernel: "k".into(),
                    buffers: vec![0, 3],
                    tiles: vec![(size(1, &["B"]), 4)],
                    scratch: size(64, &[]),
                };
                3
            ],
        }],
        codes: vec![
            Code {
                target: "x86-64-v3".into(),
                features: vec!["avx2".into()],
                offset: 2,
                len: 3,
                kernels: vec![],
                joins: vec![],
            },
            Code {
                target: "sm_90a".into(),
                features: vec![],
                offset: 0,
                len: 2,
                kernels: vec![gpu_kernel("k"), gpu_kernel("k+k")],
                joins: vec![Join {
                    entry: "decode".into(),
                    first: 1,
                    count: 2,
                    kernel: "k+k".into(),
                }],
            },
        ],
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
        ("\"dtype\":\"bf16\"", "\"dtype\":\"i1\"", "no type of weights"),
        // How a GPU runs it.
        (
            "\"name\":\"k\",\"variants\"",
            "\"name\":\"K\",\"variants\"",
            "no kernel k",
        ),
        ("\"target\":\"sm_90a\"", "\"target\":\"x86-64-v4\"", "a CPU's"),
        ("\"buffer\":1}", "\"buffer\":2}", "buffer 2 of 2"),
        ("\"first\":1", "\"first\":2", "launches 2 to 4 of 3"),
        ("\"first\":1", "\"first\":4294967295", "of 3"),
        ("\"count\":2", "\"count\":0", "0 launches"),
        (
            "\"entry\":\"decode\"",
            "\"entry\":\"prefill\"",
            "no entry point prefill",
        ),
        ("\"kernel\":\"k+k\"", "\"kernel\":\"kk\"", "no kernel kk"),
        (",19]]", ",0]]", "blocks of 0"),
        ("\"workspace\":0}", "\"workspace\":3}", "workspace 3 of 3"),
        ("\"buffers\":[1,0],\"w", "\"buffers\":[1,2],\"w", "buffer 2 of 2"),
        ("\"workspaces\":[0,0,0]", "\"workspaces\":[0,1,0]", "workspace 1 of 1"),
        ("\"threads\":384", "\"threads\":0", "0 threads"),
        ("\"threads\":384", "\"threads\":1025", "1025 threads"),
        ("\"shared\":200000", "\"shared\":300000", "300000 bytes of shared"),
        ("\"cluster\":2", "\"cluster\":17", "17 blocks of a cluster"),
        ("\"per_multiprocessor\":3", "\"per_multiprocessor\":1000", "1000 blocks"),
        ("\"counters\":5", "\"counters\":4000000000", "4000000000 counters"),
        ("[65,129]", "[65,257]", "257 elements of a box"),
        ("[65,129]", "[65,0]", "0 elements of a box"),
        ("[65,129]", "[65]", "a box of 1 for 2"),
        ("\"swizzle\":128", "\"swizzle\":127", "a swizzle of 127"),
        (",17]]", ",-1]]", "blocks of -1"),
        (
            "\"coef\":1024,\"syms\":[\"B\"]",
            "\"coef\":1024,\"syms\":[\"Z\"]",
            "symbol Z",
        ),
    ] {
        let bytes = with_header(|h| {
            assert!(h.contains(from), "{from} in {h}");
            h.replacen(from, to, 1)
        });
        let error = Artefact::from_bytes(&bytes).unwrap_err();
        assert!(error.contains(word), "{from} -> {to}: {error}");
    }
    // The last variant is for what the others do not take; steps are what runs.
    let refused = |change: &dyn Fn(&mut GpuKernel)| {
        let mut a = artefact();
        change(&mut a.header.codes[1].kernels[0]);
        Artefact::from_bytes(&a.to_bytes().unwrap()).unwrap_err()
    };
    assert!(refused(&|k| drop(k.variants.pop())).contains("for all sizes"));
    assert!(refused(&|k| k.variants.clear()).contains("for all sizes"));
    assert!(refused(&|k| k.variants[1].steps.clear()).contains("0 steps"));
    let many = |k: &mut GpuKernel| {
        let maps = &mut k.variants[0].steps[0].maps;
        *maps = vec![maps[0].clone(); 40];
    };
    assert!(refused(&many).contains("bytes of parameters"));
    let mut a = artefact();
    let joins = &mut a.header.codes[1].joins;
    joins.push(Join {
        first: 2,
        count: 1,
        ..joins[0].clone()
    });
    let error = Artefact::from_bytes(&a.to_bytes().unwrap()).unwrap_err();
    assert!(error.contains("stand in two"), "{error}");
    let flat = |k: &mut GpuKernel| k.variants[0].steps[0].maps[0].dims.clear();
    assert!(refused(&flat).contains("0 dimensions"));
}

/// What a GPU's code says survives the file, and neither device takes the other's code.
#[test]
fn devices_take_their_own_code() {
    use runtime::{Device, Engine, Options};
    let dir = tempfile::tempdir().unwrap();
    let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
    let file = safetensors::serialize([("w", tensor)], None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let checkpoint = runtime::weights::Checkpoint::open(dir.path()).unwrap();
    let mut a = artefact();
    a.header.codes.remove(0);
    let error = Engine::load(&a, &checkpoint, Options::cpu(1))
        .err()
        .unwrap()
        .to_string();
    for word in ["sm_90a", "a CPU does not run", "--device cuda", "--target native"] {
        assert!(error.contains(word), "{error}");
    }
    // Where there is no GPU, one line says why; where there is one, its number is too large or its code is missing.
    let error = Engine::load(&a, &checkpoint, Options::on(Device::Cuda(99), 1))
        .err()
        .unwrap();
    let error = error.to_string();
    assert!(error.starts_with("cuda: ") && !error.contains('\n'), "{error}");
}

proptest! {
    #[test]
    fn flipped_or_cut_bytes_are_refused(at in 0usize..8192, bit in 0u8..8, cut in prop::option::of(0usize..4096)) {
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
    fn changed_headers_never_panic(at in 0usize..8192, byte in 0x20u8..0x7f) {
        let bytes = with_header(|h| {
            let mut h = h.into_bytes();
            let at = at % h.len();
            h[at] = byte;
            String::from_utf8(h).unwrap()
        });
        let _ = Artefact::from_bytes(&bytes);
    }
}

/// As root a rename onto `/dev/full` would work, and the device would be gone.
#[test]
fn what_is_no_file_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = runtime::weights::write_whole(&path, &[b"bytes"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("socket") && error.contains("name a file"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(!std::fs::metadata(&path).unwrap().is_file());
}
