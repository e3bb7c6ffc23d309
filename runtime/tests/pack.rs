//! Packed weights against the definition of `Layout::Panels`, on odd shapes and every type.

use std::path::Path;

use half::{bf16, f16};
use runtime::artefact::{DType, Layout, PANEL, Source, TensorRef, Weight};
use runtime::pack::{WeightBuffer, load};
use runtime::weights::Checkpoint;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn value(i: usize) -> f32 {
    ((i * 37 % 251) as f32 - 125.0) / 64.0
}

fn bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    let each = |x: &f32| match dtype {
        DType::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(each).collect()
}

/// Column k's factor.
fn scale(k: usize) -> f32 {
    1.0 + (k % 7) as f32 / 8.0
}

/// A checkpoint of matrices [n_i, k] named w0, w1, ...
fn checkpoint(dir: &Path, rows: &[usize], k: usize, dtype: DType) -> (Checkpoint, Vec<f32>) {
    let all: Vec<f32> = (0..rows.iter().sum::<usize>() * k).map(value).collect();
    (stored(dir, rows, k, dtype, all.clone()), all)
}

fn stored(dir: &Path, rows: &[usize], k: usize, dtype: DType, all: Vec<f32>) -> Checkpoint {
    let kind = match dtype {
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    let mut begin = 0;
    let mut parts = vec![];
    for n in rows {
        parts.push(bytes(&all[begin * k..(begin + n) * k], dtype));
        begin += n;
    }
    let views = rows
        .iter()
        .zip(&parts)
        .enumerate()
        .map(|(i, (n, data))| (format!("w{i}"), TensorView::new(kind, vec![*n, k], data).unwrap()));
    let factors: Vec<u8> = (0..k).flat_map(|k| scale(k).to_le_bytes()).collect();
    let factors = TensorView::new(Dtype::F32, vec![k], &factors).unwrap();
    let views = views.chain([("scale".to_string(), factors)]);
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    Checkpoint::open(dir).unwrap()
}

fn recipe(rows: &[usize], k: usize, dtype: DType, layout: Layout) -> Weight {
    let part = |(i, n): (usize, &usize)| TensorRef {
        name: format!("w{i}"),
        shape: vec![*n as i64, k as i64],
        scale: None,
    };
    Weight {
        source: Source::Tensors(rows.iter().enumerate().map(part).collect()),
        dtype,
        layout,
    }
}

fn content(buffer: &WeightBuffer) -> Vec<u8> {
    unsafe { std::slice::from_raw_parts(buffer.ptr(), buffer.bytes()) }.to_vec()
}

#[test]
fn panels_are_what_their_layout_says() {
    let dir = tempfile::tempdir().unwrap();
    for rows in [
        vec![1],
        vec![63],
        vec![64],
        vec![65],
        vec![130],
        vec![600],
        vec![48, 16, 70],
        vec![3, 61],
    ] {
        for k in [1, 2, 31, 64, 100] {
            for from in [DType::F32, DType::BF16, DType::F16] {
                for (to, pair) in [(DType::F32, 1), (DType::BF16, 2)] {
                    let (checkpoint, all) = checkpoint(dir.path(), &rows, k, from);
                    let made = load(&[recipe(&rows, k, to, Layout::Panels { pair })], &checkpoint, 2).unwrap();
                    let (n, p, pair) = (rows.iter().sum::<usize>(), PANEL as usize, pair as usize);
                    let units = k.div_ceil(pair);
                    let mut wanted = vec![0.0; n.div_ceil(p) * p * units * pair];
                    for (i, x) in all.iter().enumerate() {
                        let (row, col) = (i / k, i % k);
                        wanted[(row / p * units + col / pair) * p * pair + row % p * pair + col % pair] = *x;
                    }
                    assert_eq!(
                        content(&made[0]),
                        bytes(&wanted, to),
                        "{rows:?} x {k}, {from:?} to {to:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn row_major_is_converted_or_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    for from in [DType::F32, DType::BF16, DType::F16] {
        for to in [DType::F32, DType::BF16] {
            for rows in [vec![5], vec![5, 600]] {
                let (checkpoint, all) = checkpoint(dir.path(), &rows, 7, from);
                let made = load(&[recipe(&rows, 7, to, Layout::RowMajor)], &checkpoint, 2).unwrap();
                assert_eq!(content(&made[0]), bytes(&all, to), "{rows:?} {from:?} to {to:?}");
                let in_place = matches!(made[0], WeightBuffer::Mapped { .. });
                assert_eq!(in_place, from == to && rows.len() == 1);
            }
        }
    }
}

#[test]
fn a_wrong_shape_or_a_nan_names_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let (good, _) = checkpoint(dir.path(), &[5], 7, DType::F32);
    let refused = |w: Weight, c: &Checkpoint| load(&[w], c, 1).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused(recipe(&[6], 7, DType::F32, Layout::RowMajor), &good).contains("w0 has shape [5, 7]"));
    assert!(refused(recipe(&[5, 5], 7, DType::F32, Layout::RowMajor), &good).contains("w1"));
    for bad in [f32::NAN, f32::INFINITY] {
        let file = dir.path().join("model.safetensors");
        let mut data = std::fs::read(&file).unwrap();
        let end = data.len();
        data[end - 8..end - 4].copy_from_slice(&bad.to_le_bytes());
        std::fs::write(&file, data).unwrap();
        let c = Checkpoint::open(dir.path()).unwrap();
        assert!(refused(recipe(&[5], 7, DType::BF16, Layout::Panels { pair: 2 }), &c).contains("w0"));
    }
}

/// A folded norm: every column by its element of the scale, rounded once.
#[test]
fn columns_are_scaled() {
    for (from, to) in [
        (DType::BF16, DType::BF16),
        (DType::F32, DType::BF16),
        (DType::F16, DType::F32),
        (DType::F32, DType::F32),
    ] {
        for layout in [
            Layout::RowMajor,
            Layout::Panels {
                pair: if to == DType::BF16 { 2 } else { 1 },
            },
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (rows, k) = ([70usize, 35], 33usize);
            let (checkpoint, _) = checkpoint(dir.path(), &rows, k, from);
            let mut scaled = recipe(&rows, k, to, layout);
            if let Source::Tensors(parts) = &mut scaled.source {
                parts.iter_mut().for_each(|p| p.scale = Some("scale".to_string()));
            }
            let found = load(&[scaled], &checkpoint, 2).unwrap();
            // The same matrices, multiplied before they were stored.
            let products = tempfile::tempdir().unwrap();
            let all = (0..rows.iter().sum::<usize>() * k).map(|i| {
                let stored = bytes(&[value(i)], from);
                let x = match from {
                    DType::BF16 => bf16::from_le_bytes([stored[0], stored[1]]).to_f32(),
                    DType::F16 => f16::from_le_bytes([stored[0], stored[1]]).to_f32(),
                    _ => value(i),
                };
                x * scale(i % k)
            });
            let wanted = stored(products.path(), &rows, k, DType::F32, all.collect());
            let wanted = load(&[recipe(&rows, k, to, layout)], &wanted, 2).unwrap();
            let view = |b: &WeightBuffer| unsafe { std::slice::from_raw_parts(b.ptr(), b.bytes()) }.to_vec();
            assert_eq!(view(&found[0]), view(&wanted[0]), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_scale_of_another_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, _) = checkpoint(dir.path(), &[4], 33, DType::F32);
    let mut weight = recipe(&[4], 33, DType::F32, Layout::RowMajor);
    if let Source::Tensors(parts) = &mut weight.source {
        parts[0].scale = Some("w0".to_string());
    }
    let error = load(&[weight], &checkpoint, 1)
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    assert!(error.contains("cannot scale w0"), "{error}");
}
