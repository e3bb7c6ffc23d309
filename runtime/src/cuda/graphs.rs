//! Which calls have been recorded: a few graphs, found by entry point, sizes and states; the one that was used longest ago makes room.
//!
//! A call is recorded the second time it comes: the first one loads what the driver loads late, and most prompts' lengths come once.

/// What a recorded call depends on. Addresses follow from it as long as no memory of calls moves; when some does, all is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub entry: usize,
    /// Values of `SYMBOLS`.
    pub symbols: [i64; 4],
    /// The states' number, 0 for none.
    pub state: u64,
}

/// Graphs kept at once: decoding at two lengths, prefill, a training step and a loss are fewer.
const GRAPHS: usize = 16;
/// Calls remembered that came once.
const SEEN: usize = 64;

pub struct Graphs<G> {
    /// The last used at the end.
    recorded: Vec<(Key, G)>,
    seen: Vec<Key>,
}

impl<G> Default for Graphs<G> {
    fn default() -> Self {
        Graphs {
            recorded: vec![],
            seen: vec![],
        }
    }
}

impl<G> Graphs<G> {
    pub fn find(&mut self, key: &Key) -> Option<&G> {
        let at = self.recorded.iter().position(|(k, _)| k == key)?;
        let found = self.recorded.remove(at);
        self.recorded.push(found);
        self.recorded.last().map(|(_, graph)| graph)
    }

    /// Has this call come before? It has, from now on.
    pub fn is_known(&mut self, key: &Key) -> bool {
        let known = self.seen.contains(key);
        if !known {
            if self.seen.len() == SEEN {
                self.seen.remove(0);
            }
            self.seen.push(*key);
        }
        known
    }

    pub fn keep(&mut self, key: Key, graph: G) {
        if self.recorded.len() == GRAPHS {
            self.recorded.remove(0);
        }
        self.recorded.push((key, graph));
    }

    /// Addresses have changed.
    pub fn forget(&mut self) {
        self.recorded.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: i64) -> Key {
        Key {
            entry: 0,
            symbols: [1, n, 0, 0],
            state: 1,
        }
    }

    #[test]
    fn the_second_time_and_the_longest_unused() {
        let mut graphs = Graphs::default();
        assert!(!graphs.is_known(&key(1)));
        assert!(graphs.is_known(&key(1)));
        for n in 0..GRAPHS as i64 {
            graphs.keep(key(n), n);
        }
        assert_eq!(graphs.find(&key(0)), Some(&0));
        graphs.keep(key(100), 100);
        assert_eq!(graphs.find(&key(1)), None, "used longest ago");
        assert_eq!(graphs.find(&key(0)), Some(&0));
        assert_eq!(graphs.find(&Key { state: 2, ..key(0) }), None);
        graphs.forget();
        assert_eq!(graphs.find(&key(0)), None);
        assert!(graphs.is_known(&key(1)));
    }
}
