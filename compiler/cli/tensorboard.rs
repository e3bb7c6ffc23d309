//! TensorBoard event files: the few records that scalars need. Knows no metric.
//!
//! A file is TFRecords (length, its checksum, data, its checksum) of `tensorflow.Event`. No library does just that:
//! `tensorboard-rs` is no longer worked on and brings an image library, `tboard` needs `protoc` to build.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use prost::Message;

/// What we use of tensorflow/core/util/event.proto; the tags are the format.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    // Optional so that 0 is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// SessionLog.START
const START: i32 = 1;

/// An event file on its way.
pub struct Writer {
    file: File,
}

impl Writer {
    /// A new file in `folder`, for a run that has taken `steps` steps. What older files say of later ones no longer
    /// counts: the start record says so, and TensorBoard drops it.
    pub fn create(folder: &Path, steps: u64) -> anyhow::Result<Writer> {
        let at = || format!("cannot write {}", folder.display());
        fs::create_dir_all(folder).with_context(at)?;
        let older = fs::read_dir(folder).with_context(at)?.count();
        let seconds = now() as u64;
        // TensorBoard reads the files in the order of their names.
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.{older:04}.loopc"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let mut writer = Writer {
            file: file.with_context(|| format!("cannot write {}", path.display()))?,
        };
        writer.event(Event {
            file_version: Some("brain.Event:2".to_string()),
            ..Event::default()
        })?;
        writer.event(Event {
            step: steps as i64 + i64::from(steps > 0),
            session_log: Some(SessionLog { status: START }),
            ..Event::default()
        })?;
        Ok(writer)
    }

    /// The values that are there, by their names.
    pub fn scalars(&mut self, step: u64, values: &[(&str, Option<f64>)]) -> std::io::Result<()> {
        let there = values.iter().filter_map(|(name, value)| {
            Some(Scalar {
                tag: name.to_string(),
                simple_value: Some((*value)? as f32),
            })
        });
        self.event(Event {
            step: step as i64,
            summary: Some(Summary { value: there.collect() }),
            ..Event::default()
        })
    }

    fn event(&mut self, event: Event) -> std::io::Result<()> {
        let event = Event {
            wall_time: now(),
            ..event
        };
        self.file.write_all(&record(&event.encode_to_vec()))
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length), data, &checksum(data)].concat()
}

/// TFRecord's: crc32c, turned and shifted, so that a checksum of data with checksums in it is a good one.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file, all checksums tested.
    fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut found = vec![];
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, checksum(length));
            let (data, rest) = rest.split_at(n);
            let (crc, rest) = rest.split_at(4);
            assert_eq!(crc, checksum(data));
            found.push(Event::decode(data).unwrap());
            bytes = rest;
        }
        found
    }

    /// As TensorBoard reads a folder: a start record drops what was said of its step and later ones.
    fn read(folder: &Path) -> Vec<(String, i64, f32)> {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let mut found: Vec<(String, i64, f32)> = vec![];
        for file in files {
            assert!(file.file_name().unwrap().to_string_lossy().contains(".tfevents."));
            let events = events(&fs::read(&file).unwrap());
            assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
            for event in events {
                assert!(event.wall_time > 1.7e9);
                if event.session_log.is_some_and(|s| s.status == START) {
                    found.retain(|(_, step, _)| *step < event.step);
                }
                for value in event.summary.unwrap_or_default().value {
                    found.push((value.tag, event.step, value.simple_value.unwrap()));
                }
            }
        }
        found
    }

    #[test]
    fn checksums_are_tfrecords() {
        // TensorFlow's own test: crc32c("123456789") is 0xe3069283.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        // The first 12 bytes of every event file that TensorFlow writes with a version record of 24 bytes.
        assert_eq!(
            record(&[0; 24])[..12],
            [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]
        );
    }

    #[test]
    fn a_version_record_has_tensorflows_bytes() {
        let event = Event {
            wall_time: 1.0,
            file_version: Some("brain.Event:2".to_string()),
            ..Event::default()
        };
        let wanted = [&[9, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x1a, 13][..], b"brain.Event:2"].concat();
        assert_eq!(event.encode_to_vec(), wanted);
    }

    #[test]
    fn a_run_that_goes_on_says_every_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Writer::create(folder.path(), 0).unwrap();
        let values = |step: u64| {
            [
                ("loss/train", Some(step as f64 / 2.0)),
                ("rate", Some(0.0)),
                ("loss/validation", None),
            ]
        };
        first.scalars(0, &[("loss/validation", Some(9.0))]).unwrap();
        for step in 1..=5 {
            first.scalars(step, &values(step)).unwrap();
        }
        // The last checkpoint was at step 3.
        let mut second = Writer::create(folder.path(), 3).unwrap();
        for step in 4..=6 {
            second.scalars(step, &values(step)).unwrap();
        }
        let found = read(folder.path());
        let of = |name: &str| -> Vec<(i64, f32)> {
            found
                .iter()
                .filter(|(n, ..)| n == name)
                .map(|(_, step, x)| (*step, *x))
                .collect()
        };
        assert_eq!(
            of("loss/train"),
            [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, 2.5), (6, 3.0)]
        );
        assert_eq!(of("rate").len(), 6);
        assert_eq!(of("loss/validation"), [(0, 9.0)]);
    }

    #[test]
    fn damage_shows() {
        let mut bytes = record(b"data");
        bytes[13] ^= 1;
        assert!(std::panic::catch_unwind(|| events(&bytes)).is_err());
    }
}
