//! Sizes for the values of a call: elements, tiles, slots of the arena. Arithmetic alone, the same for every device.

use crate::artefact::{DType, Entry, Size, Sizes, Variant};

impl Size {
    /// None without a value for one of its symbols, or if it is too large.
    pub fn value(&self, values: &Sizes) -> Option<i64> {
        eval(self, values)
    }
}

impl Variant {
    /// Is it right for these sizes?
    pub fn fits(&self, values: &Sizes) -> bool {
        let fits = |(size, most): &(Size, i64)| eval(size, values).is_some_and(|n| n <= *most);
        let divides = |(size, of): &(Size, i64)| eval(size, values).is_some_and(|n| n % of == 0);
        self.at_most.as_ref().is_none_or(fits) && self.multiples.iter().all(divides)
    }
}

/// Nothing here is `None` for sound sizes but a symbol without a value and a number beyond i64.
pub fn eval(size: &Size, values: &Sizes) -> Option<i64> {
    size.syms
        .iter()
        .try_fold(size.coef, |acc, s| acc.checked_mul(*values.get(s)?))
}

pub fn elements(shape: &[Size], values: &Sizes) -> Option<i64> {
    shape.iter().try_fold(1i64, |acc, s| acc.checked_mul(eval(s, values)?))
}

pub fn width(dtype: DType) -> i64 {
    match dtype {
        DType::F32 | DType::I32 => 4,
        DType::BF16 | DType::F16 => 2,
        DType::I1 => 1,
    }
}

/// Bytes of a tensor.
pub fn bytes(dtype: DType, shape: &[Size], values: &Sizes) -> Option<usize> {
    let n = elements(shape, values)?.checked_mul(width(dtype))?;
    usize::try_from(n).ok()
}

/// The product of `ceil(size / block)`.
pub fn tiles(tiles: &[(Size, i64)], values: &Sizes) -> Option<i64> {
    tiles.iter().try_fold(1i64, |acc, (size, block)| {
        let n = eval(size, values)?.checked_add(block - 1)? / block;
        acc.checked_mul(n)
    })
}

/// Pieces of memory one after the other, each at a multiple of `align`: where they begin, and the bytes of all.
pub fn places(lengths: impl IntoIterator<Item = usize>, align: usize) -> Option<(Vec<usize>, usize)> {
    let (mut offsets, mut end) = (vec![], 0usize);
    for len in lengths {
        offsets.push(end);
        // Sums stay far below what `next_multiple_of` could overflow on.
        end = end.checked_add(len).filter(|n| *n < 1 << 60)?.next_multiple_of(align);
    }
    Some((offsets, end))
}

/// Where the arena's slots begin, and its bytes: each slot is as large as its largest tenant, and `slack` more.
pub fn arena(entry: &Entry, values: &Sizes, align: usize, slack: usize) -> Option<(Vec<usize>, usize)> {
    let mut lengths = vec![];
    for slot in &entry.slots {
        let mut largest = 0;
        for size in slot {
            largest = largest.max(eval(size, values)?);
        }
        lengths.push(usize::try_from(largest).ok()?.checked_add(slack)?);
    }
    places(lengths, align)
}

/// As many keys as one recorded call serves; at most all that there are.
pub fn rounded_keys(keys: i64, capacity: i64) -> i64 {
    const STEP: i64 = 256;
    let up = keys.checked_add(STEP - 1).map_or(keys, |n| n / STEP * STEP);
    up.min(capacity).max(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(coef: i64, syms: &[&str]) -> Size {
        Size {
            coef,
            syms: syms.iter().map(|s| s.to_string()).collect(),
        }
    }

    fn values(pairs: &[(&str, i64)]) -> Sizes {
        pairs.iter().map(|(k, v)| (k.to_string(), *v)).collect()
    }

    #[test]
    fn sizes_and_tiles() {
        let v = values(&[("B", 3), ("T", 70)]);
        assert_eq!(eval(&size(2, &["B", "T"]), &v), Some(420));
        assert_eq!(eval(&size(2, &["S"]), &v), None);
        assert_eq!(eval(&size(i64::MAX, &["B"]), &v), None);
        assert_eq!(tiles(&[(size(1, &["T"]), 64), (size(5, &["B"]), 4)], &v), Some(2 * 4));
        assert_eq!(tiles(&[], &v), Some(1));
        assert_eq!(bytes(DType::BF16, &[size(1, &["B"]), size(5, &[])], &v), Some(30));
    }

    #[test]
    fn slots_lie_one_after_the_other() {
        let entry = Entry {
            name: "e".into(),
            inputs: vec![],
            outputs: vec![],
            slots: vec![vec![size(1, &["T"]), size(300, &[])], vec![size(1, &[])], vec![]],
            buffers: vec![],
            launches: vec![],
        };
        let v = values(&[("T", 70)]);
        assert_eq!(arena(&entry, &v, 256, 0), Some((vec![0, 512, 768], 768)));
        assert_eq!(arena(&entry, &v, 64, 64), Some((vec![0, 384, 512], 576)));
        assert_eq!(places([usize::MAX], 64), None);
    }

    #[test]
    fn keys_of_a_recorded_call() {
        assert_eq!(rounded_keys(1, 4096), 256);
        assert_eq!(rounded_keys(256, 4096), 256);
        assert_eq!(rounded_keys(257, 4096), 512);
        assert_eq!(rounded_keys(300, 310), 310);
        assert_eq!(rounded_keys(i64::MAX, 10), i64::MAX);
    }
}
