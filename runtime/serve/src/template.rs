//! A checkpoint's chat template: messages in, the text of a prompt out.

use crate::api::chat::Message;
use crate::api::error::ApiError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Steps that a template may take for one request: it comes with the checkpoint, but what it loops over does not.
const FUEL: u64 = 5_000_000;
/// Longest file that is read.
const MOST_BYTES: u64 = 16 << 20;
const NAME: &str = "chat";

/// Why a checkpoint's template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {message}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// A template that was understood.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja` of a model folder, else `chat_template` of its `tokenizer_config.json`; `None` if there is
    /// neither.
    ///
    /// # Errors
    /// [`TemplateError`] if there is one and it cannot be used.
    pub fn load(folder: &Path) -> Result<Option<Self>, TemplateError> {
        let file = folder.join("tokenizer_config.json");
        let config: Value = match read(&file)? {
            None => Value::Null,
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| TemplateError::Invalid { file: file.clone(), message: error.to_string() })?,
        };
        let own = folder.join("chat_template.jinja");
        let (file, source) = match read(&own)? {
            Some(text) => (own, Some(text)),
            None => (file, in_config(&config)),
        };
        let Some(source) = source else { return Ok(None) };
        let (bos_token, eos_token) = (token(&config, "bos_token"), token(&config, "eos_token"));
        Self::new(source, bos_token, eos_token).map(Some).map_err(|message| TemplateError::Invalid { file, message })
    }

    /// From its text and the two tokens that it may use.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(source: String, bos_token: String, eos_token: String) -> Result<Self, String> {
        let mut environment = Environment::new();
        // As the library that templates are written for sets it.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source).map_err(|error| error.to_string())?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The prompt of `messages`, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// The template refuses them.
    pub fn render(&self, messages: &[Message]) -> Result<String, ApiError> {
        let refused = |error: Error| {
            let message = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            ApiError::Text(format!("the model's chat template refuses these messages: {message}"))
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let rendered = template.render(context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        });
        rendered.map_err(refused)
    }
}

/// A text, or a list of named ones.
fn in_config(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default").or(named.first());
            default.and_then(|entry| entry["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    }
}

/// A special token's text: written out, or an object with its content.
fn token(config: &Value, key: &str) -> String {
    let value = &config[key];
    value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
}

fn read(file: &Path) -> Result<Option<String>, TemplateError> {
    let io = |source| TemplateError::Io { file: file.to_path_buf(), source };
    match std::fs::metadata(file) {
        Ok(metadata) if metadata.len() > MOST_BYTES => Err(TemplateError::Invalid {
            file: file.to_path_buf(),
            message: format!("longer than {MOST_BYTES} bytes, which no such file is"),
        }),
        Ok(_) => std::fs::read_to_string(file).map(Some).map_err(io),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &'static str, content: &str) -> Message {
        Message { role, content: content.into(), name: None }
    }

    #[test]
    fn templates_as_checkpoints_have_them() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {%- if message['role'] not in ['user', 'assistant', 'system'] %}\n{{ raise_exception('no ' + message.role) }}\n    {%- endif %}\n{{ '<|' + message.role + '|>' + message['content'].strip() + eos_token }}\n{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}";
        let template = ChatTemplate::new(source.into(), "<s>".into(), "</s>".into()).expect("it is understood");
        let text = template.render(&[message("system", " be kind "), message("user", "hello")]).expect("it renders");
        assert_eq!(text, "<s><|system|>be kind</s>\n<|user|>hello</s>\n<|assistant|>");
        let error = template.render(&[message("tool", "x")]).expect_err("it raises");
        assert!(error.to_string().contains("no tool"), "{error}");
    }

    #[test]
    fn a_template_that_never_ends_does() {
        let source = "{% for a in range(10000) %}{% for b in range(10000) %}{{ a * b }}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(source.into(), String::new(), String::new()).expect("it is understood");
        assert!(template.render(&[]).is_err());
        assert!(ChatTemplate::new("{% if %}".into(), String::new(), String::new()).is_err());
    }

    #[test]
    fn broken_files_are_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(ChatTemplate::load(folder.path()).expect("nothing is wrong with nothing").is_none());
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("it can be written");
        write("tokenizer_config.json", "{");
        let error = ChatTemplate::load(folder.path()).err().expect("no JSON").to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
        write(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<b>"}, "chat_template": [{"name": "default", "template": "{{ bos_token }}"}]}"#,
        );
        let template = ChatTemplate::load(folder.path()).expect("it is understood").expect("it is there");
        assert_eq!(template.render(&[]).expect("it renders"), "<b>");
        write("chat_template.jinja", "own");
        let template = ChatTemplate::load(folder.path()).expect("it is understood").expect("it is there");
        assert_eq!(template.render(&[]).expect("it renders"), "own");
        write("chat_template.jinja", "{{");
        assert!(ChatTemplate::load(folder.path()).is_err());
    }
}
