//! Spans of functions as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: one line of time for each entry point.

use std::collections::BTreeSet;
use std::path::Path;

use runtime::engine::Span;
use serde_json::{Value, json};

pub fn write(path: &Path, machine: &str, spans: &[Span]) -> anyhow::Result<()> {
    let text = serde_json::to_vec(&trace(machine, spans))?;
    Ok(runtime::weights::write_whole(path, &[&text])?)
}

/// The format: "Trace Event Format", complete events (`X`) in microseconds and names of processes and threads (`M`).
fn trace(machine: &str, spans: &[Span]) -> Value {
    let entries: BTreeSet<&str> = spans.iter().map(|s| s.entry.as_str()).collect();
    let thread = |entry: &str| entries.iter().position(|e| *e == entry).map_or(0, |i| i + 1);
    let mut events =
        vec![json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": format!("loopc on {machine}")}})];
    for entry in &entries {
        events.push(json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": thread(entry), "args": {"name": entry}}));
    }
    for (i, s) in spans.iter().enumerate() {
        events.push(json!({
            "ph": "X", "name": s.function, "cat": s.entry, "pid": 1, "tid": thread(&s.entry),
            "ts": 1e6 * s.start.as_secs_f64(), "dur": 1e6 * s.time.as_secs_f64(), "args": {"launch": i},
        }));
    }
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_span_is_an_event_of_its_entry() {
        let span = |entry: &str, function: &str, start| Span {
            entry: entry.to_string(),
            function: function.to_string(),
            start: Duration::from_micros(start),
            time: Duration::from_nanos(1500),
        };
        let spans = [span("prefill", "a", 0), span("decode", "b", 7), span("prefill", "c", 3)];
        let trace = trace("2 threads", &spans);
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |kind: &str| events.iter().filter(|e| e["ph"] == kind).cloned().collect::<Vec<_>>();
        assert_eq!(of("M").len(), 3);
        let x = of("X");
        let line = |i: usize| (x[i]["name"].as_str().unwrap(), x[i]["tid"].as_u64().unwrap());
        assert_eq!([line(0), line(1), line(2)], [("a", 2), ("b", 1), ("c", 2)]);
        assert_eq!((x[1]["ts"].as_f64(), x[1]["dur"].as_f64()), (Some(7.0), Some(1.5)));
    }
}
