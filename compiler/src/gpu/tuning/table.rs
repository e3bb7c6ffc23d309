//! A file of choices: one device, one target, and for each kernel the way that serves so many rows.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

/// A table that cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct TableError {
    pub name: String,
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// As the driver names it; none: every device of the target.
    #[serde(default)]
    pub device: Option<String>,
    pub target: String,
    /// By `ways::key`, or by the beginning of such a key and `*`.
    #[serde(default)]
    pub kernels: BTreeMap<String, Vec<Choice>>,
}

/// A way for a range of rows. What no choice covers is left to the next table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The least rows; none: right behind the choice before it.
    #[serde(default)]
    pub from: Option<i64>,
    /// The most rows; none: no end.
    #[serde(default)]
    pub to: Option<i64>,
    /// Instead of `to`: the most elements of the result, so that one line serves kernels of all widths.
    #[serde(default)]
    pub elements: Option<i64>,
    pub way: String,
}

impl Choice {
    pub fn new(from: i64, to: i64, way: &str) -> Choice {
        Choice {
            from: Some(from),
            to: Some(to),
            elements: None,
            way: way.to_string(),
        }
    }

    /// The most rows of a kernel of so many columns.
    pub fn end(&self, columns: i64) -> Option<i64> {
        self.to.or(self.elements.map(|n| n / columns.max(1)))
    }
}

impl Table {
    /// `name`: the file, for people.
    pub fn parse(text: &str, name: &str) -> Result<Table, TableError> {
        let failed = |reason: String| TableError {
            name: name.to_string(),
            reason,
        };
        let table: Table = toml::from_str(text).map_err(|e| failed(e.to_string().trim().replace('\n', " ")))?;
        for (kernel, choices) in &table.kernels {
            in_order(choices).map_err(|e| failed(format!("`{kernel}`: {e}")))?;
        }
        Ok(table)
    }

    /// What it says of a kernel: by its key, else by the longest beginning.
    pub fn find(&self, key: &str) -> Option<(&str, &[Choice])> {
        let begins = |(k, _): &(&String, &Vec<Choice>)| k.strip_suffix('*').is_some_and(|k| key.starts_with(k));
        let found = (self.kernels.get_key_value(key))
            .or_else(|| self.kernels.iter().filter(begins).max_by_key(|(k, _)| k.len()));
        found.map(|(k, choices)| (k.as_str(), choices.as_slice()))
    }

    /// Takes over what `newer` says; of the rest of its kernels' rows the older choices stay.
    pub fn merge(&mut self, newer: &Table) {
        for (key, choices) in &newer.kernels {
            let old = self.kernels.entry(key.clone()).or_default();
            for new in choices {
                *old = old.iter().flat_map(|c| without(c, new)).collect();
            }
            old.extend(choices.iter().cloned());
            old.sort_by_key(|c| c.from);
            *old = joined(std::mem::take(old));
        }
    }
}

/// Neighbours that agree, as one.
pub fn joined(choices: Vec<Choice>) -> Vec<Choice> {
    let mut all: Vec<Choice> = vec![];
    for c in choices {
        match all.last_mut() {
            Some(last) if last.way == c.way && last.to.is_some() && last.to.map(|n| n + 1) == c.from => {
                (last.to, last.elements) = (c.to, c.elements)
            }
            _ => all.push(c),
        }
    }
    all
}

/// What is left of a choice in front of and behind another one.
fn without(old: &Choice, new: &Choice) -> Vec<Choice> {
    let (first, last) = (|c: &Choice| c.from.unwrap_or(1), |c: &Choice| c.to.unwrap_or(i64::MAX));
    let mut left = vec![];
    if first(old) < first(new) {
        let end = last(old).min(first(new) - 1);
        left.push(Choice::new(first(old), end, &old.way));
    }
    if last(old) > last(new) {
        left.push(Choice {
            from: Some(first(old).max(last(new) + 1)),
            ..old.clone()
        });
    }
    left
}

fn in_order(choices: &[Choice]) -> Result<(), String> {
    let mut next = Some(1);
    for c in choices {
        let begin = c.from.or(next).unwrap_or(i64::MAX);
        let Some(least) = next else {
            return Err(format!("`{}` stands behind a choice without an end", c.way));
        };
        if c.to.is_some() && c.elements.is_some() {
            return Err(format!("`{}` has both `to` and `elements`", c.way));
        }
        if begin < least || c.to.is_some_and(|to| to < begin) || c.elements.is_some_and(|n| n < 1) {
            let to = c.to.map_or("the end".to_string(), |n| n.to_string());
            return Err(format!("rows {begin} to {to}: ranges ascend from 1 and do not overlap"));
        }
        // How many rows so many elements are is not known here.
        next = match (c.to, c.elements) {
            (Some(to), _) => to.checked_add(1),
            (None, Some(_)) => Some(begin),
            (None, None) => None,
        };
    }
    Ok(())
}

/// As `parse` reads it.
impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quoted = |s: &str| toml::Value::from(s).to_string();
        if let Some(device) = &self.device {
            writeln!(f, "device = {}", quoted(device))?;
        }
        writeln!(f, "target = {}\n\n[kernels]", quoted(&self.target))?;
        for (key, choices) in &self.kernels {
            writeln!(f, "{} = [", quoted(key))?;
            for c in choices {
                let mut parts = String::new();
                for (name, n) in [("from", c.from), ("to", c.to), ("elements", c.elements)] {
                    if let Some(n) = n {
                        write!(parts, "{name} = {n}, ")?;
                    }
                }
                writeln!(f, "    {{ {parts}way = {} }},", quoted(&c.way))?;
            }
            writeln!(f, "]")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(choices: &str) -> Result<Table, String> {
        let text = format!("device = \"a \\\"GPU\\\"\"\ntarget = \"sm_90a\"\n[kernels]\n\"matmul x\" = [{choices}]\n");
        Table::parse(&text, "file.toml").map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_written_is_read() {
        let t =
            table("{ to = 8, way = \"r8\" }, { from = 20, elements = 4096, way = \"a\" }, { way = \"b\" }").unwrap();
        assert_eq!(t.device.as_deref(), Some("a \"GPU\""));
        assert_eq!(t.kernels["matmul x"][1].end(64), Some(64));
        assert_eq!(Table::parse(&t.to_string(), "again").unwrap(), t);
    }

    #[test]
    fn what_is_wrong_is_told_with_the_file() {
        let wrong = |choices: &str, word: &str| {
            let e = table(choices).unwrap_err();
            assert!(e.starts_with("file.toml: ") && e.contains(word), "{e}");
            assert_eq!(e.lines().count(), 1, "{e}");
        };
        wrong("{ to = 8 }", "way");
        wrong("{ to = 8, way = \"a\", colour = 1 }", "colour");
        wrong(
            "{ way = \"a\" }, { to = 9, way = \"b\" }",
            "behind a choice without an end",
        );
        wrong(
            "{ to = 8, way = \"a\" }, { from = 8, to = 9, way = \"b\" }",
            "rows 8 to 9",
        );
        wrong("{ from = 9, to = 8, way = \"a\" }", "rows 9 to 8");
        wrong("{ from = 0, to = 8, way = \"a\" }", "rows 0 to 8");
        wrong("{ to = 8, elements = 8, way = \"a\" }", "both");
        assert!(
            Table::parse("device = \"x\"", "f")
                .unwrap_err()
                .to_string()
                .contains("target")
        );
    }

    #[test]
    fn the_kernel_s_own_line_before_the_longest_beginning() {
        let mut t = table("{ way = \"own\" }").unwrap();
        for (key, way) in [("*", "any"), ("matmul *", "long"), ("mat*", "short")] {
            let choice = Choice {
                from: None,
                to: None,
                elements: None,
                way: way.to_string(),
            };
            t.kernels.insert(key.to_string(), vec![choice]);
        }
        let found = |key| t.find(key).map(|(_, c)| c[0].way.as_str());
        assert_eq!(
            [found("matmul x"), found("matmul y"), found("sweep")],
            [Some("own"), Some("long"), Some("any")]
        );
    }

    #[test]
    fn what_is_measured_again_takes_the_place_of_what_was() {
        let mut old = table("{ from = 3, to = 100, way = \"a\" }, { from = 200, way = \"b\" }").unwrap();
        let new = table("{ from = 50, to = 60, way = \"c\" }, { from = 90, to = 300, way = \"b\" }").unwrap();
        old.merge(&new);
        let ranges = |t: &Table| -> Vec<(i64, Option<i64>, String)> {
            let all = t.kernels["matmul x"].iter();
            all.map(|c| (c.from.unwrap(), c.to, c.way.clone())).collect()
        };
        let expected = [
            (3, Some(49), "a"),
            (50, Some(60), "c"),
            (61, Some(89), "a"),
            (90, None, "b"),
        ];
        assert_eq!(ranges(&old), expected.map(|(a, b, w)| (a, b, w.to_string())));
        // Measured once more, nothing changes; another kernel's choices are added.
        let before = old.clone();
        old.merge(&new);
        assert_eq!(old, before);
        let other = Table {
            kernels: BTreeMap::from([("other".to_string(), vec![Choice::new(1, 2, "z")])]),
            ..new
        };
        old.merge(&other);
        assert_eq!(old.kernels.len(), 2);
        assert_eq!(Table::parse(&old.to_string(), "again").unwrap(), old);
    }
}
