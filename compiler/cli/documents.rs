//! Data files as documents: plain text, JSON lines and Parquet. Says what is wrong with a file and the way out;
//! knows no tokens.

use std::panic;
use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use parquet::basic::CompressionCodec as Codec;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

/// The texts of a file that holds `bytes`, in order; none is empty and there is at least one.
///
/// `.jsonl` and `.json` files have an object per line with a string under `field`, Parquet files a column of that name;
/// anything else is one text in UTF-8.
pub fn of(file: &Path, bytes: Vec<u8>, field: &str) -> anyhow::Result<Vec<String>> {
    let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let mut documents = if ending == "parquet" || bytes.starts_with(b"PAR1") {
        parquet(file, bytes, field)?
    } else {
        let text = utf8(file, bytes)?;
        if matches!(ending, "jsonl" | "json") {
            json_lines(file, &text, field)?
        } else {
            vec![text]
        }
    };
    documents.retain(|d| !d.is_empty());
    if documents.is_empty() {
        bail!("{} is empty: there is no text in it", file.display());
    }
    Ok(documents)
}

/// The text, without a byte order mark.
fn utf8(file: &Path, bytes: Vec<u8>) -> anyhow::Result<String> {
    let at = file.display();
    if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        bail!("{at} is compressed; unpack it (gzip -d, zstd -d) and give the result");
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        bail!("{at} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8");
    }
    if let Some(zero) = bytes.iter().position(|b| *b == 0) {
        bail!("{at} is binary (byte {zero} is 0); give plain text, JSON lines (.jsonl) or Parquet (.parquet)");
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        anyhow::anyhow!(
            "{at} is not UTF-8 text (byte {valid} is {:#04x}); convert it (iconv -f LATIN1 -t UTF-8)",
            e.as_bytes()[valid]
        )
    })?;
    Ok(text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text))
}

fn json_lines(file: &Path, text: &str, field: &str) -> anyhow::Result<Vec<String>> {
    let mut documents = vec![];
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let at = || format!("{}, line {}", file.display(), i + 1);
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("{}: a line must be one JSON object", at()))?;
        match value.get(field) {
            Some(serde_json::Value::String(text)) => documents.push(text.clone()),
            Some(_) => bail!("{}: `{field}` is no string; name another with --field", at()),
            None => bail!(
                "{}: there is no `{field}`{}",
                at(),
                others(value.as_object().into_iter().flat_map(|o| o.keys()))
            ),
        }
    }
    Ok(documents)
}

/// The way out when a name is not among `names`.
fn others<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() {
        return "; every line must be an object with that string in it".to_string();
    }
    format!("; name one of {} with --field", names.join(", "))
}

/// The library panics on some damaged files; for a user that is one more way to be unreadable.
fn parquet(file: &Path, bytes: Vec<u8>, field: &str) -> anyhow::Result<Vec<String>> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let read = panic::catch_unwind(|| column(file, bytes, field));
    panic::set_hook(hook);
    read.unwrap_or_else(|_| {
        bail!(
            "{} is no readable Parquet file (it is damaged); fetch it again",
            file.display()
        )
    })
}

/// The strings of a column.
fn column(file: &Path, bytes: Vec<u8>, field: &str) -> anyhow::Result<Vec<String>> {
    let at = file.display();
    let broken = |e: ParquetError| anyhow::anyhow!("{at} is no readable Parquet file ({e}); fetch it again");
    let reader = SerializedFileReader::new(Bytes::from(bytes)).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema();
    let columns = schema.get_fields();
    let Some(column) = columns.iter().find(|c| c.name() == field) else {
        let names: Vec<String> = columns.iter().map(|c| c.name().to_string()).collect();
        bail!("{at}: there is no column `{field}`{}", others(names.iter()));
    };
    let groups = reader.metadata().row_groups().iter();
    let mut codecs = groups.flat_map(|g| g.columns()).map(|c| c.compression_codec());
    let known = [Codec::UNCOMPRESSED, Codec::SNAPPY, Codec::ZSTD];
    if let Some(other) = codecs.find(|c| !known.contains(c)) {
        bail!("{at} is compressed with {other:?}; write it again with Snappy or Zstandard");
    }
    // Only this column is read.
    let projection = Type::group_type_builder(schema.name())
        .with_fields(vec![column.clone()])
        .build();
    let rows = reader.get_row_iter(Some(projection.map_err(broken)?)).map_err(broken)?;
    let mut documents = vec![];
    for (i, row) in rows.enumerate() {
        match row.map_err(broken)?.into_columns().pop() {
            Some((_, Field::Str(text))) => documents.push(text),
            // Some writers leave out that the bytes are text.
            Some((_, Field::Bytes(bytes))) => match String::from_utf8(bytes.data().to_vec()) {
                Ok(text) => documents.push(text),
                Err(_) => bail!(
                    "{at}, row {}: `{field}` is not UTF-8 text; name another column with --field",
                    i + 1
                ),
            },
            Some((_, Field::Null)) | None => bail!("{at}, row {}: `{field}` is null; drop such rows", i + 1),
            Some(_) => bail!("{at}: the column `{field}` holds no strings; name another with --field"),
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    const TEXTS: [&str; 3] = [
        "It was the best of times,",
        "",
        "naïve 世界 🦀\nit was the worst of times.",
    ];

    /// Two row groups of `id`, `text` and `raw`, which is text that does not say so; null where `text` is `-`.
    fn written(texts: &[&str], compression: Compression) -> Vec<u8> {
        let schema = "message m { required int32 id; optional binary text (UTF8); required binary raw; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut bytes = vec![];
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
        for part in texts.chunks(2) {
            let mut group = writer.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<Int32Type>()
                .write_batch(&vec![7; part.len()], None, None)
                .unwrap();
            column.close().unwrap();
            let there: Vec<i16> = part.iter().map(|t| i16::from(*t != "-")).collect();
            let values: Vec<ByteArray> = part
                .iter()
                .filter(|t| **t != "-")
                .map(|t| ByteArray::from(*t))
                .collect();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&there), None)
                .unwrap();
            column.close().unwrap();
            let values: Vec<ByteArray> = part.iter().map(|t| ByteArray::from(*t)).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, None, None)
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    }

    fn refused(file: &str, bytes: &[u8], field: &str, word: &str) {
        let error = format!("{:#}", of(Path::new(file), bytes.to_vec(), field).unwrap_err());
        assert!(
            error.contains(file) && error.contains(word),
            "{file}: wants `{word}`: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn texts_survive_every_format() {
        let wanted: Vec<&str> = TEXTS.into_iter().filter(|t| !t.is_empty()).collect();
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            let bytes = written(&TEXTS, compression);
            assert_eq!(of(Path::new("a.parquet"), bytes.clone(), "text").unwrap(), wanted);
            assert_eq!(of(Path::new("no-ending"), bytes.clone(), "raw").unwrap(), wanted);
        }
        let lines: Vec<String> = TEXTS
            .iter()
            .map(|t| serde_json::json!({"id": 1, "text": t}).to_string())
            .collect();
        let lines = lines.join("\n\n").into_bytes();
        assert_eq!(of(Path::new("a.jsonl"), lines, "text").unwrap(), wanted);
        let marked = ["\u{feff}", TEXTS[2]].concat().into_bytes();
        assert_eq!(of(Path::new("a.txt"), marked, "text").unwrap(), [TEXTS[2]]);
    }

    #[test]
    fn what_is_wrong_is_told_with_the_way_out() {
        for file in ["a.txt", "a.jsonl"] {
            refused(file, b"", "text", "is empty");
            refused(file, b"plain\0", "text", "is binary (byte 5 is 0)");
            refused(file, b"caf\xe9 au lait", "text", "byte 3 is 0xe9); convert it");
            refused(file, b"\xff\xfea\0", "text", "UTF-16");
            refused(file, b"\x1f\x8b\x08", "text", "unpack");
        }
        refused("a.jsonl", b"\n\n", "text", "is empty");
        refused("a.jsonl", b"{\"text\": \"\"}", "text", "is empty");
        refused(
            "a.jsonl",
            b"{\"text\": \"x\"}\n\n{\"body\": \"y\"}",
            "text",
            "line 3: there is no `text`; name one of body",
        );
        refused("a.jsonl", b"{\"text\": 3}", "text", "line 1: `text` is no string");
        refused("a.json", b"[\n1\n]", "text", "line 1: a line must be one JSON object");
        refused(
            "a.json",
            b"[1]",
            "text",
            "line 1: there is no `text`; every line must be an object",
        );

        let good = written(&TEXTS, Compression::SNAPPY);
        refused(
            "a.parquet",
            &good,
            "body",
            "no column `body`; name one of id, text, raw with --field",
        );
        refused("a.parquet", &good, "id", "holds no strings");
        refused(
            "a.parquet",
            &written(&["x", "y", "-"], Compression::SNAPPY),
            "text",
            "row 3: `text` is null",
        );
        refused("a.parquet", b"plain text", "text", "no readable Parquet");
        refused("a.parquet", b"", "text", "no readable Parquet");
        refused("a.parquet", &good[..good.len() / 2], "text", "fetch it again");
    }

    /// A damaged file is refused or read as something else; it never panics.
    #[test]
    fn damage_is_survived() {
        let good = written(&TEXTS, Compression::SNAPPY);
        for at in 0..good.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= change;
                let _ = of(Path::new("a.parquet"), bad, "text");
            }
        }
    }
}
