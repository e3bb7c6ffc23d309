//! Time by kernel, summed or span by span. Devices note what they ran; nothing is measured here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One kernel's run on the device's clock, since the trace began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub entry: String,
    pub kernel: String,
    pub start: Duration,
    pub time: Duration,
}

/// What is being recorded; by default nothing.
#[derive(Default)]
pub struct Recorder {
    rows: Option<BTreeMap<String, (u64, Duration)>>,
    trace: Option<(Instant, Vec<Span>)>,
}

impl Recorder {
    pub fn is_on(&self) -> bool {
        self.rows.is_some() || self.trace.is_some()
    }

    pub fn note(&mut self, entry: &str, kernel: &str, start: Instant, time: Duration) {
        if let Some(rows) = &mut self.rows {
            let row = rows.entry(kernel.to_string()).or_default();
            row.0 += 1;
            row.1 += time;
        }
        if let Some((origin, spans)) = &mut self.trace {
            spans.push(Span {
                entry: entry.to_string(),
                kernel: kernel.to_string(),
                start: start.saturating_duration_since(*origin),
                time,
            });
        }
    }

    /// See `Engine::profile`.
    pub fn profile(&mut self, on: bool) -> Vec<(String, u64, Duration)> {
        let counted = std::mem::replace(&mut self.rows, on.then(BTreeMap::new));
        let mut rows: Vec<_> = counted
            .unwrap_or_default()
            .into_iter()
            .map(|(k, (n, t))| (k, n, t))
            .collect();
        rows.sort_by_key(|(_, _, t)| std::cmp::Reverse(*t));
        rows
    }

    /// See `Engine::trace`.
    pub fn trace(&mut self, on: bool) -> Vec<Span> {
        let traced = std::mem::replace(&mut self.trace, on.then(|| (Instant::now(), vec![])));
        traced.map_or(vec![], |(_, spans)| spans)
    }
}
