//! Tensor maps: what `cuTensorMapEncodeTiled` would make, for copies by the bulk engine.
//!
//! The 128 bytes are this crate's own: a kernel only passes them on. Element strides other than one and interleaved layouts are absent.

/// How 16-byte chunks move within shared memory: bits of the address above are XORed into those of the chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    #[default]
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// Bytes of a row of the pattern.
    pub fn span(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Where the byte at `address` is: bits 4.. (1, 2 or 3 of them) XOR bits 7...
    pub fn apply(self, address: u32) -> u32 {
        let bits = match self {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ (address >> 7 & bits) << 4
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    BF16,
    F32,
    F64,
}

impl Element {
    const ALL: [Element; 10] = [
        Element::U8,
        Element::U16,
        Element::U32,
        Element::S32,
        Element::U64,
        Element::S64,
        Element::F16,
        Element::BF16,
        Element::F32,
        Element::F64,
    ];

    pub fn bytes(self) -> u32 {
        match self {
            Element::U8 => 1,
            Element::U16 | Element::F16 | Element::BF16 => 2,
            Element::U32 | Element::S32 | Element::F32 => 4,
            Element::U64 | Element::S64 | Element::F64 => 8,
        }
    }
}

/// A tensor in global memory and the box of it that one copy moves. Axis 0 is the one whose elements lie side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub address: u64,
    pub element: Element,
    pub dims: Vec<u64>,
    /// In bytes, of axes 1 and on.
    pub strides: Vec<u64>,
    pub box_dims: Vec<u32>,
    pub swizzle: Swizzle,
}

const MAGIC: &[u8; 8] = b"ptx-tmap";

impl TensorMap {
    /// What the driver would refuse.
    pub fn check(&self) -> Result<(), String> {
        let rank = self.dims.len();
        let need = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
        need((1..=5).contains(&rank), format!("rank {rank}"))?;
        need(
            self.strides.len() == rank - 1,
            format!("{} strides for rank {rank}", self.strides.len()),
        )?;
        need(
            self.box_dims.len() == rank,
            format!("a box of rank {} for rank {rank}", self.box_dims.len()),
        )?;
        need(
            self.address.is_multiple_of(16),
            format!("address {:#x} is no multiple of 16", self.address),
        )?;
        for (axis, &n) in self.dims.iter().enumerate() {
            need((1..=1 << 32).contains(&n), format!("axis {axis} has {n} elements"))?;
        }
        for (i, &s) in self.strides.iter().enumerate() {
            need(
                s.is_multiple_of(16) && s < 1 << 40,
                format!("stride {s} of axis {} is no multiple of 16", i + 1),
            )?;
        }
        for (axis, &n) in self.box_dims.iter().enumerate() {
            need(
                (1..=256).contains(&n),
                format!("the box has {n} elements along axis {axis}"),
            )?;
        }
        let inner = self.box_dims[0] * self.element.bytes();
        need(
            inner.is_multiple_of(16),
            format!("the box's rows of {inner} bytes are no multiple of 16"),
        )?;
        let span = self.swizzle.span();
        need(
            self.swizzle == Swizzle::None || inner <= span,
            format!("the box's rows of {inner} bytes are longer than the swizzle's {span}"),
        )?;
        // How rows shorter than the pattern are placed is not documented well enough to imitate.
        need(
            self.swizzle == Swizzle::None || inner == span,
            format!("rows of {inner} bytes, shorter than the swizzle's {span}, are not supported here"),
        )
    }

    /// Bytes that one copy moves, and completes on its mbarrier.
    pub fn box_bytes(&self) -> u32 {
        self.box_dims.iter().product::<u32>() * self.element.bytes()
    }

    pub fn encode(&self) -> [u8; 128] {
        let mut out = [0; 128];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(MAGIC);
        put(&self.address.to_le_bytes());
        put(&[self.element as u8, self.dims.len() as u8, self.swizzle as u8]);
        for i in 0..5 {
            // An axis may have 2^32 elements.
            put(&(self.dims.get(i).map_or(0, |n| n.wrapping_sub(1)) as u32).to_le_bytes());
            put(&(self.box_dims.get(i).copied().unwrap_or(0) as u16).to_le_bytes());
        }
        for i in 0..4 {
            put(&self.strides.get(i).copied().unwrap_or(0).to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<TensorMap, String> {
        if bytes.len() < 128 || &bytes[..8] != MAGIC {
            return Err("these 128 bytes are no tensor map".to_owned());
        }
        let word = |at: usize, n: usize| bytes[at..at + n].iter().rev().fold(0u64, |x, b| x << 8 | *b as u64);
        let rank = bytes[17] as usize;
        if !(1..=5).contains(&rank) {
            return Err(format!("rank {rank}"));
        }
        let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        let map = TensorMap {
            address: word(8, 8),
            element: *Element::ALL.get(bytes[16] as usize).ok_or("an unknown element type")?,
            dims: (0..rank).map(|i| word(19 + 6 * i, 4) + 1).collect(),
            box_dims: (0..rank).map(|i| word(23 + 6 * i, 2) as u32).collect(),
            strides: (1..rank).map(|i| word(49 + 8 * (i - 1), 8)).collect(),
            swizzle: *swizzles.get(bytes[18] as usize).ok_or("an unknown swizzle")?,
        };
        map.check().map(|()| map)
    }

    /// The global address of an element, or `None` outside the tensor.
    pub fn element_at(&self, at: &[i64]) -> Option<u64> {
        let mut address = self.address;
        for (axis, (&i, &n)) in at.iter().zip(&self.dims).enumerate() {
            if i < 0 || i as u64 >= n {
                return None;
            }
            let stride = if axis == 0 {
                self.element.bytes() as u64
            } else {
                self.strides[axis - 1]
            };
            address += i as u64 * stride;
        }
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_its_bytes() {
        let map = TensorMap {
            address: 0x1000,
            element: Element::BF16,
            dims: vec![64, 1 << 32, 3],
            strides: vec![128, 1 << 20],
            box_dims: vec![64, 256, 1],
            swizzle: Swizzle::B128,
        };
        assert_eq!(TensorMap::decode(&map.encode()), Ok(map));
    }

    #[test]
    fn swizzles_move_chunks_as_the_rows_say() {
        // Row 3, chunk 2 of a 128-byte pattern is at chunk 1.
        assert_eq!(Swizzle::B128.apply(3 * 128 + 2 * 16 + 5), 3 * 128 + 16 + 5);
        // 64 bytes: two rows share 128 bytes; rows 2 and 3 are XORed with 1.
        assert_eq!(Swizzle::B64.apply(2 * 64), 2 * 64 + 16);
        assert_eq!(Swizzle::B64.apply(64), 64);
        // 32 bytes: rows 4 to 7 swap their halves.
        assert_eq!(Swizzle::B32.apply(4 * 32), 4 * 32 + 16);
        assert_eq!(Swizzle::B32.apply(3 * 32), 3 * 32);
    }
}
