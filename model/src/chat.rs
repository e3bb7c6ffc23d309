//! The checkpoint's own chat template, rendered as Hugging Face renders it (Jinja2, with Python's string methods).
//!
//! Makes text only; the special tokens in it become ids in the tokenizer.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

use crate::config;

#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error(
        "{folder}: no chat template (neither chat_template.jinja nor `chat_template` in tokenizer_config.json); \
         this is a base model: give the prompt as plain text",
        folder = folder.display()
    )]
    Missing { folder: PathBuf },
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error("{file}: cannot read it: {source}", file = file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{file}: the chat template: {source}", file = file.display())]
    Template { file: PathBuf, source: minijinja::Error },
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: &str) -> Message {
        Message {
            role: role.to_string(),
            content: content.to_string(),
        }
    }
}

/// One message of the user, up to the words that begin the model's answer.
pub fn prompt(folder: &Path, text: &str) -> Result<String, ChatError> {
    ChatTemplate::load(folder)?.render(&[Message::new("user", text)], true)
}

/// A compiled template and the special tokens it may name.
pub struct ChatTemplate {
    env: Environment<'static>,
    file: PathBuf,
    tokens: Vec<(String, String)>,
}

const TEMPLATE: &str = "chat";

impl ChatTemplate {
    /// `chat_template.jinja` of the folder or else `chat_template` (one, or the one named `default`) of its
    /// tokenizer_config.json.
    pub fn load(folder: &Path) -> Result<ChatTemplate, ChatError> {
        let config_file = folder.join("tokenizer_config.json");
        let config = if config_file.exists() {
            config::read(&config_file)?
        } else {
            serde_json::Value::Null
        };
        let jinja = folder.join("chat_template.jinja");
        let (file, source) = if jinja.exists() {
            match std::fs::read_to_string(&jinja) {
                Ok(text) => (jinja, text),
                Err(source) => return Err(ChatError::Read { file: jinja, source }),
            }
        } else {
            match template_in(&config) {
                Some(text) => (config_file, text.to_string()),
                None => {
                    return Err(ChatError::Missing {
                        folder: folder.to_path_buf(),
                    });
                }
            }
        };
        let mut env = environment();
        if let Err(source) = env.add_template_owned(TEMPLATE, source) {
            return Err(ChatError::Template { file, source });
        }
        Ok(ChatTemplate {
            env,
            file,
            tokens: special_tokens(&config),
        })
    }

    /// The conversation as the model expects it; `answer`: with the words that begin the model's own turn.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String, ChatError> {
        let tokens = Value::from_iter(self.tokens.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))));
        let values = context! { messages => messages, add_generation_prompt => answer, ..tokens };
        let rendered = self.env.get_template(TEMPLATE).and_then(|t| t.render(values));
        rendered.map_err(|source| ChatError::Template {
            file: self.file.clone(),
            source,
        })
    }
}

fn template_in(config: &serde_json::Value) -> Option<&str> {
    let template = config.get("chat_template")?;
    let named = |name: &str| {
        let of_name = |t: &&serde_json::Value| t.get("name").and_then(|n| n.as_str()) == Some(name);
        template.as_array()?.iter().find(of_name)?.get("template")?.as_str()
    };
    template.as_str().or_else(|| named("default"))
}

/// `bos_token` and the like: a string, or an object with `content`.
fn special_tokens(config: &serde_json::Value) -> Vec<(String, String)> {
    let text = |v: &serde_json::Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(str::to_string);
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(k, _)| k.ends_with("_token"))
        .filter_map(|(k, v)| Some((k.clone(), text(v)?)))
        .collect()
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // A template is data from elsewhere: it may not run for ever.
    env.set_recursion_limit(100);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
    env
}

/// Unlike minijinja's own `tojson` it does not escape for HTML.
fn to_json(value: Value, options: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let bad = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let text = match indent {
        None => python_json(&value)?,
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            let mut out = vec![];
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))
                .map_err(bad)?;
            String::from_utf8_lossy(&out).into_owned()
        }
    };
    Ok(Value::from_safe_string(text))
}

/// One line with Python's separators: `{"a": 1, "b": [2, 3]}`.
fn python_json(value: &Value) -> Result<String, Error> {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
            w.write_all(if first { b"" } else { b", " })
        }
        fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
            w.write_all(if first { b"" } else { b", " })
        }
        fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
            w.write_all(b": ")
        }
    }
    let mut out = vec![];
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced));
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// The part of strftime that templates use, in UTC.
fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", time / 3600)),
            Some('M') => out.push_str(&format!("{:02}", time / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", time % 60)),
            Some('%') => out.push('%'),
            other => {
                let message = format!(
                    "strftime_now: %{} is not supported",
                    other.map_or(String::new(), String::from)
                );
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// Year, month (1..), day (1..) of a number of days since 1970-01-01 (Howard Hinnant's civil_from_days).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (
        era * 400 + year_of_era + u64::from(month <= 2),
        month,
        day_of_year - (153 * m + 2) / 5 + 1,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rendered(config: serde_json::Value, messages: &[Message]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let plain = |e: ChatError| e.to_string().replace(&dir.path().display().to_string(), "DIR");
        ChatTemplate::load(dir.path())
            .map_err(plain)?
            .render(messages, true)
            .map_err(plain)
    }

    fn with(template: &str) -> serde_json::Value {
        serde_json::json!({"chat_template": template, "bos_token": "<s>", "eos_token": {"content": "</s>"}})
    }

    #[test]
    fn templates_render_as_in_transformers() {
        let talk = [
            Message::new("system", " Be <brief>. "),
            Message::new("user", "Hi\nthere"),
        ];
        // SmolLM2's own template.
        let smol = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let cases = [
            (
                smol,
                &talk[1..],
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                smol,
                &talk[..],
                "<|im_start|>system\n Be <brief>. <|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "{{ bos_token }}{{ messages[0].content.strip() }}{{ eos_token }}",
                &talk,
                "<s>Be <brief>.</s>",
            ),
            (
                "{%- for m in messages[::-1] %}\n  {%- set i = (messages|length - 1) - loop.index0 %}\n{{ i }}:{{ m.role }}\n{%- endfor %}",
                &talk,
                "1:user0:system",
            ),
            ("  {% if true %}\nx\n  {% endif %}\n", &talk, "x\n"),
            (
                "{{ messages[1].content.split('\n')[-1].startswith('th') }} {{ messages[0] | tojson }}",
                &talk,
                r#"True {"role": "system", "content": " Be <brief>. "}"#,
            ),
            (
                "{%- set ns = namespace(n=0) %}{%- for m in messages %}{%- set ns.n = ns.n + 1 %}{%- endfor %}{{ ns.n }}{% if tools is defined and tools %}T{% endif %}",
                &talk,
                "2",
            ),
        ];
        for (template, messages, wanted) in cases {
            assert_eq!(rendered(with(template), messages).as_deref(), Ok(wanted), "{template}");
        }
    }

    #[test]
    fn the_default_of_several_templates_is_taken() {
        let list = serde_json::json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        assert_eq!(rendered(list, &[]).as_deref(), Ok("d"));
    }

    #[test]
    fn the_jinja_file_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), with("old").to_string()).unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), "new {{ bos_token }}").unwrap();
        assert_eq!(
            ChatTemplate::load(dir.path()).unwrap().render(&[], true).unwrap(),
            "new <s>"
        );
    }

    #[test]
    fn errors_name_the_file_and_the_reason() {
        let missing = rendered(serde_json::json!({}), &[]).unwrap_err();
        assert!(missing.starts_with("DIR: no chat template"), "{missing}");
        for (template, word) in [
            ("{{ raise_exception('no system turn') }}", "no system turn"),
            ("{% for %}", "syntax error"),
            ("{{ strftime_now('%Q') }}", "%Q is not supported"),
        ] {
            let error = rendered(with(template), &[]).unwrap_err();
            assert!(
                error.starts_with("DIR/tokenizer_config.json: ") && error.contains(word),
                "{error}"
            );
        }
    }

    #[test]
    fn dates_are_right() {
        for (seconds, wanted) in [
            (0, "Thu Thursday 01 Jan 1970 00:00:00"),
            (951_782_399, "Mon Monday 28 Feb 2000 23:59:59"),
            (951_782_400, "Tue Tuesday 29 Feb 2000 00:00:00"),
            (1_735_689_599, "Tue Tuesday 31 Dec 2024 23:59:59"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(strftime("%a %A %d %b %Y %H:%M:%S", time).unwrap(), wanted);
        }
    }
}
