//! In which order a tile of 64 rows visits blocks of 128 keys, known when compiling: everything hangs on distances alone.
//!
//! Blocks are counted from the newest key that the tile's last row sees: half d of 64 keys holds distances 64 d - 63 .. 64 d + 63 from the
//! 64 rows. A segment sees a half wholly, at its edge, or not at all. Where a chain's segments meet inside one block, that block is visited
//! once for each of them and its scores are computed once; where the seam runs through two blocks, both are brought again.

/// Keys of a block.
pub const KEYS: i64 = 128;
/// Rows of a warp group's tile, and keys of half a block.
pub const HALF: i64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    None,
    Edge,
    All,
}

/// Distances near..far that a segment sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub near: i64,
    pub far: Option<i64>,
}

impl Bounds {
    /// How the segment sees half d.
    pub fn part(self, d: i64) -> Part {
        let (least, most) = (HALF * d - HALF + 1, HALF * d + HALF - 1);
        let far = self.far.unwrap_or(i64::MAX);
        if d < 0 || most < self.near || least >= far {
            Part::None
        } else if least >= self.near && most < far {
            Part::All
        } else {
            Part::Edge
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    pub block: i64,
    /// Of the chain.
    pub segment: usize,
    /// Older keys, newer keys.
    pub halves: [Part; 2],
    /// Halves that any visit of the block wants.
    pub scored: [bool; 2],
    /// The block that was visited just before: its scores are there.
    pub again: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Visit(Visit),
    /// Blocks that the segment sees wholly.
    Run {
        from: i64,
        to: Option<i64>,
        segment: usize,
    },
    /// A block that only the other warp group wants.
    Skip {
        block: i64,
    },
    /// What this segment has seen is its result.
    Cut {
        segment: usize,
    },
}

impl Item {
    /// Its first block.
    pub fn block(&self) -> Option<i64> {
        match self {
            Item::Visit(v) => Some(v.block),
            Item::Run { from, .. } => Some(*from),
            Item::Skip { block } => Some(*block),
            Item::Cut { .. } => None,
        }
    }
}

/// Numbers of the halves of a block for rows that lie `shift` halves behind the tile's last ones.
pub fn halves(block: i64, shift: i64) -> [i64; 2] {
    [2 * block + 1 - shift, 2 * block - shift]
}

/// Ranges of blocks in the order in which they are brought, for warp groups with these shifts.
pub fn ranges(chain: &[Bounds], shifts: &[i64]) -> Vec<(i64, Option<i64>)> {
    let range = |b: &Bounds| {
        let seen = |block: i64| {
            shifts
                .iter()
                .any(|s| halves(block, *s).iter().any(|d| b.part(*d) != Part::None))
        };
        let from = (b.near / KEYS..).find(|i| seen(*i)).unwrap_or(0);
        (from, b.far.map(|_| (from..).find(|i| !seen(*i)).unwrap_or(from)))
    };
    let all: Vec<_> = chain.iter().map(range).collect();
    if meets_at_halves(chain) {
        vec![(all[0].0, all[all.len() - 1].1)]
    } else {
        all
    }
}

fn meets_at_halves(chain: &[Bounds]) -> bool {
    chain[1..].iter().all(|b| b.near % HALF == 0)
}

/// What a warp group with this shift does with them.
pub fn items(chain: &[Bounds], shift: i64, shifts: &[i64]) -> Vec<Item> {
    let once = meets_at_halves(chain);
    let mut items: Vec<Item> = vec![];
    let mut now = 0;
    let cut = |items: &mut Vec<Item>, now: &mut usize, segment: usize| {
        while *now < segment {
            items.push(Item::Cut { segment: *now });
            *now += 1;
        }
    };
    for (number, (from, to)) in ranges(chain, shifts).into_iter().enumerate() {
        for block in from.. {
            if to == Some(block) {
                break;
            }
            let segments = if once { 0..chain.len() } else { number..number + 1 };
            let parts = |s: usize| halves(block, shift).map(|d| chain[s].part(d));
            let seen: Vec<usize> = segments.filter(|s| parts(*s) != [Part::None; 2]).collect();
            if let [segment] = seen[..]
                && parts(segment) == [Part::All; 2]
            {
                cut(&mut items, &mut now, segment);
                match items.last_mut() {
                    Some(Item::Run { to, segment: s, .. }) if *s == segment => *to = Some(block + 1),
                    _ => items.push(Item::Run {
                        from: block,
                        to: Some(block + 1),
                        segment,
                    }),
                }
                if chain[segment].far.is_none() {
                    if let Some(Item::Run { to, .. }) = items.last_mut() {
                        *to = None;
                    }
                    break;
                }
                continue;
            }
            if seen.is_empty() {
                items.push(Item::Skip { block });
            }
            let scored = [0, 1].map(|h| seen.iter().any(|s| parts(*s)[h] != Part::None));
            for (i, segment) in seen.iter().enumerate() {
                cut(&mut items, &mut now, *segment);
                items.push(Item::Visit(Visit {
                    block,
                    segment: *segment,
                    halves: parts(*segment),
                    scored,
                    again: i > 0,
                }));
            }
        }
    }
    cut(&mut items, &mut now, chain.len() - 1);
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair of row and key is seen by its segment, once, and segments in their order.
    fn check(chain: &[Bounds], shift: i64, shifts: &[i64]) {
        let items = items(chain, shift, shifts);
        let mut brought: Vec<i64> = vec![];
        let mut seen = std::collections::HashMap::new();
        let mut segment = 0;
        let mut count = |block: i64, s: usize, parts: [Part; 2], now: usize| {
            assert_eq!(s, now, "{items:?}");
            for (half, d) in halves(block, shift).into_iter().enumerate() {
                assert_eq!(parts[half], chain[s].part(d));
                if parts[half] != Part::None {
                    assert!(seen.insert((s, d), ()).is_none());
                }
            }
        };
        for item in &items {
            match item {
                Item::Visit(v) => {
                    if !v.again {
                        brought.push(v.block);
                    }
                    count(v.block, v.segment, v.halves, segment);
                }
                Item::Run { from, to, segment: s } => {
                    for block in *from..to.unwrap_or(40) {
                        brought.push(block);
                        count(block, *s, [Part::All; 2], segment);
                    }
                }
                Item::Skip { block } => brought.push(*block),
                Item::Cut { segment: s } => {
                    assert_eq!(*s, segment);
                    segment += 1;
                }
            }
        }
        assert_eq!(segment, chain.len() - 1);
        let wanted: Vec<i64> = (ranges(chain, shifts).into_iter())
            .flat_map(|(a, b)| a..b.unwrap_or(40))
            .collect();
        assert_eq!(brought, wanted, "{items:?}");
        for (s, b) in chain.iter().enumerate() {
            for d in 0..70 {
                assert_eq!(seen.contains_key(&(s, d)), b.part(d) != Part::None, "{s} {d} {items:?}");
            }
        }
    }

    #[test]
    fn every_half_is_seen() {
        for w in [1, 2, 63, 64, 65, 100, 127, 128, 129, 192, 200, 256, 512, 1000] {
            for (shift, shifts) in [(0, &[0][..]), (0, &[0, 1]), (1, &[0, 1])] {
                let all = Bounds { near: 0, far: None };
                let window = Bounds { near: 0, far: Some(w) };
                let rest = Bounds { near: w, far: None };
                check(&[all], shift, shifts);
                check(&[window], shift, shifts);
                check(&[window, rest], shift, shifts);
                check(
                    &[
                        window,
                        Bounds {
                            near: w,
                            far: Some(3 * w),
                        },
                    ],
                    shift,
                    shifts,
                );
            }
        }
    }
}
