//! From a launch and a call's sizes to what a GPU is told: which variant, how many blocks, which addresses, which tensor maps.
//!
//! Arithmetic alone: nothing here calls the driver, and the tests need no GPU.

use super::module::Grid;
use crate::artefact::{DType, GpuKernel, MapSource, SYMBOLS, Size, Sizes, Step, TensorMap, Variant, taken};
use crate::engine::sizes::{eval, places, tiles, width};

use super::memory::ALIGN;

/// The first variant that fits these sizes.
pub fn variant<'a>(kernel: &'a GpuKernel, values: &Sizes) -> Option<&'a Variant> {
    kernel.variants.iter().find(|v| v.fits(values))
}

/// Where a variant's workspaces begin, and the bytes of all.
pub fn workspaces(variant: &Variant, values: &Sizes) -> Option<(Vec<usize>, usize)> {
    let lengths: Option<Vec<usize>> = variant
        .workspaces
        .iter()
        .map(|size| usize::try_from(eval(size, values)?).ok())
        .collect();
    places(lengths?, ALIGN)
}

/// The step's grid; `None` where there is nothing to do.
pub fn grid(step: &Step, values: &Sizes, multiprocessors: u32) -> Result<Option<Grid>, String> {
    let parts = [&step.tiles].into_iter().chain(&step.more_tiles);
    let blocks = parts
        .map(|t| tiles(t, values))
        .try_fold(0i64, |sum, n| sum.checked_add(n?));
    let mut blocks = blocks.ok_or("a size is unknown or too large")?;
    if step.per_multiprocessor > 0 {
        blocks = blocks.min(i64::from(step.per_multiprocessor) * i64::from(multiprocessors));
    }
    let cluster = i64::from(step.cluster.max(1));
    blocks = (blocks + cluster - 1) / cluster * cluster;
    if blocks == 0 {
        return Ok(None);
    }
    let blocks = u32::try_from(blocks).ok().filter(|n| *n < 1 << 31);
    Ok(Some(Grid {
        blocks: blocks.ok_or("it has more than 2^31 tiles")?,
        threads: step.threads,
        shared: step.shared,
        cluster: step.cluster.max(1),
        overlap: step.overlap,
    }))
}

/// Addresses of a launch.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    pub buffers: Vec<u64>,
    pub workspaces: Vec<u64>,
    /// If the variant counts.
    pub counters: Option<u64>,
}

impl Addresses {
    /// `of`: the address of each of the entry's buffers, of which the launch is given `buffers`.
    pub fn new(
        buffers: &[u32],
        variant: &Variant,
        of: &[u64],
        workspace: u64,
        offsets: &[usize],
        counters: u64,
    ) -> Self {
        Addresses {
            buffers: buffers.iter().map(|b| of[*b as usize]).collect(),
            workspaces: offsets.iter().map(|o| workspace + *o as u64).collect(),
            counters: (variant.counters > 0).then_some(counters),
        }
    }

    /// What a step is given of them.
    fn taken(&self, step: &Step) -> Option<Addresses> {
        Some(Addresses {
            buffers: taken(&step.buffers, &self.buffers)?,
            workspaces: taken(&step.workspaces, &self.workspaces)?,
            counters: self.counters,
        })
    }
}

/// The parameters of a function, in their order: pointers, symbols, tensor maps.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    pub pointers: Vec<u64>,
    pub symbols: [i32; 4],
    pub maps: Vec<MapValue>,
}

impl Parameters {
    pub fn new(step: &Step, values: &Sizes, at: &Addresses) -> Result<Parameters, String> {
        let at = &at.taken(step).ok_or("it takes memory that is not there")?;
        let pointers = at.buffers.iter().chain(&at.workspaces).chain(&at.counters);
        let maps = step.maps.iter().enumerate();
        Ok(Parameters {
            pointers: pointers.copied().collect(),
            // What a call does not give, no kernel of it reads.
            symbols: SYMBOLS.map(|s| values.get(s).map_or(0, |n| *n as i32)),
            maps: maps
                .map(|(i, m)| MapValue::new(m, values, at).map_err(|e| format!("tensor map {i}: {e}")))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A tensor map with numbers for its sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapValue {
    pub dtype: DType,
    pub address: u64,
    pub dims: Vec<u64>,
    /// Bytes, of all dimensions but the innermost.
    pub strides: Vec<u64>,
    pub r#box: Vec<u32>,
    pub swizzle: u32,
}

impl MapValue {
    /// What the driver refuses without a reason is told here.
    fn new(map: &TensorMap, values: &Sizes, at: &Addresses) -> Result<MapValue, String> {
        let number = |size: &Size| -> Result<u64, String> {
            let n = eval(size, values).ok_or("a size is unknown or too large")?;
            u64::try_from(n).map_err(|_| format!("a size is {n}"))
        };
        let element = width(map.dtype) as u64;
        let base = match map.source {
            MapSource::Buffer(i) => at.buffers.get(i as usize),
            MapSource::Workspace(i) => at.workspaces.get(i as usize),
        };
        let base = *base.ok_or("its memory is not there")?;
        let value = MapValue {
            dtype: map.dtype,
            address: base + element * number(&map.offset)?,
            dims: map.dims.iter().map(number).collect::<Result<_, _>>()?,
            strides: (map.strides.iter().map(|s| Ok(element * number(s)?))).collect::<Result<_, String>>()?,
            r#box: map.r#box.clone(),
            swizzle: map.swizzle,
        };
        if !value.address.is_multiple_of(16) {
            return Err("its first element is not at a multiple of 16 bytes".to_string());
        }
        if let Some(s) = value.strides.iter().find(|s| **s % 16 != 0 || **s >= 1 << 40) {
            return Err(format!("a stride is {s} bytes; multiples of 16 below 2^40 are taken"));
        }
        if let Some(n) = value.dims.iter().find(|n| !(1..=1 << 32).contains(*n)) {
            return Err(format!("a dimension is {n}"));
        }
        let inner = u64::from(value.r#box[0]) * element;
        if !inner.is_multiple_of(16) || (value.swizzle > 0 && inner > u64::from(value.swizzle)) {
            return Err(format!(
                "its box is {inner} bytes wide, with a swizzle of {}",
                value.swizzle
            ));
        }
        Ok(value)
    }
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

    fn step() -> Step {
        Step {
            function: "f".into(),
            tiles: vec![(size(1, &["T"]), 128), (size(300, &[]), 256)],
            threads: 384,
            shared: 200 << 10,
            ..Step::default()
        }
    }

    fn map() -> TensorMap {
        TensorMap {
            source: MapSource::Buffer(1),
            dtype: DType::BF16,
            offset: size(8, &["T"]),
            dims: vec![size(64, &[]), size(1, &["T"])],
            strides: vec![size(64, &[])],
            r#box: vec![64, 128],
            swizzle: 128,
        }
    }

    #[test]
    fn the_first_variant_that_fits() {
        let of = |limit: Option<i64>| Variant {
            at_most: limit.map(|n| (size(1, &["B", "T"]), n)),
            multiples: if limit == Some(64) {
                vec![(size(1, &["T"]), 3)]
            } else {
                vec![]
            },
            workspaces: vec![size(4, &["T"]), size(100, &[])],
            counters: limit.unwrap_or(0) as u32,
            ..Variant::default()
        };
        let kernel = GpuKernel {
            name: "k".into(),
            variants: vec![of(Some(8)), of(Some(64)), of(None)],
        };
        // 2 x 4 are few; 3 x 3 are more, in rows of three; 1 x 64 are in no such rows.
        let chosen = |b, t| variant(&kernel, &values(&[("B", b), ("T", t)])).unwrap().counters;
        assert_eq!(
            [chosen(2, 4), chosen(3, 3), chosen(1, 63), chosen(1, 64), chosen(1, 66)],
            [8, 64, 64, 0, 0]
        );
        let v = values(&[("T", 65)]);
        assert_eq!(workspaces(&kernel.variants[0], &v), Some((vec![0, 512], 768)));
        // Without a value for a size only the variant that asks for none is left.
        assert_eq!(variant(&kernel, &v).unwrap().counters, 0);
    }

    #[test]
    fn grids() {
        let blocks = |s: &Step, t| grid(s, &values(&[("T", t)]), 132).map(|g| g.map_or(0, |g| g.blocks));
        let mut s = step();
        assert_eq!(blocks(&s, 1), Ok(2));
        assert_eq!(blocks(&s, 129), Ok(4));
        s.per_multiprocessor = 1;
        assert_eq!(blocks(&s, 1 << 20), Ok(132));
        s.cluster = 8;
        assert_eq!(blocks(&s, 1 << 20), Ok(136));
        assert_eq!(blocks(&s, 1), Ok(8));
        assert!(grid(&s, &values(&[]), 132).unwrap_err().contains("unknown"));
        let joined = Step {
            more_tiles: vec![vec![], vec![(size(3, &["T"]), 2)]],
            ..step()
        };
        assert_eq!(blocks(&joined, 5), Ok(2 + 1 + 8));
        s.tiles[1].0.coef = 0;
        assert_eq!(blocks(&s, 5), Ok(0));
        let many = Step {
            tiles: vec![(size(1 << 20, &["T"]), 1)],
            ..step()
        };
        assert!(blocks(&many, 1 << 20).unwrap_err().contains("2^31"));
    }

    #[test]
    fn parameters_in_their_order() {
        let variant = Variant {
            workspaces: vec![size(1, &[]); 2],
            counters: 3,
            ..Variant::default()
        };
        let at = Addresses::new(
            &[2, 0],
            &variant,
            &[0x1000, 0x2000, 0x3000],
            0x8000,
            &[0, 0x100],
            0x9000,
        );
        let s = Step {
            maps: vec![map()],
            ..step()
        };
        let p = Parameters::new(&s, &values(&[("B", 2), ("T", 70)]), &at).unwrap();
        assert_eq!(p.pointers, [0x3000, 0x1000, 0x8000, 0x8100, 0x9000]);
        assert_eq!(p.symbols, [2, 70, 0, 0]);
        let wanted = MapValue {
            dtype: DType::BF16,
            address: 0x1000 + 2 * 8 * 70,
            dims: vec![64, 70],
            strides: vec![128],
            r#box: vec![64, 128],
            swizzle: 128,
        };
        assert_eq!(p.maps, [wanted]);
    }

    #[test]
    fn maps_that_the_driver_refuses() {
        let at = Addresses {
            buffers: vec![0x1000, 0x2000],
            ..Addresses::default()
        };
        let v = values(&[("T", 16)]);
        let refused = |change: &dyn Fn(&mut TensorMap)| {
            let mut m = map();
            change(&mut m);
            MapValue::new(&m, &v, &at).unwrap_err()
        };
        assert!(MapValue::new(&map(), &v, &at).is_ok());
        assert!(refused(&|m| m.offset = size(1, &[])).contains("multiple of 16"));
        assert!(refused(&|m| m.strides[0] = size(4, &[])).contains("stride is 8"));
        assert!(refused(&|m| m.dims[1] = size(0, &[])).contains("dimension is 0"));
        assert!(refused(&|m| m.r#box[0] = 128).contains("256 bytes wide"));
        assert!(refused(&|m| m.source = MapSource::Workspace(0)).contains("not there"));
        assert!(refused(&|m| m.dims[0] = size(1, &["S"])).contains("unknown"));
    }
}
