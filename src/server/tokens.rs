//! `/tokenize` and `/detokenize`, in the shape that vLLM gives them.

use super::app::App;
use super::body;
use super::chat;
use super::completions::{token_ids, token_text};
use super::error::{ApiError, json_response};
use super::fields::Fields;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use oxgpt_engine::tokenizer::EncodeOptions;
use serde_json::json;

/// Takes `model`, which may be left away here.
async fn fields(app: &App, body: Body) -> Result<Fields, ApiError> {
    let mut fields = Fields::parse(&body::read(app, body).await?)?;
    if let Some(name) = fields.string("model")? {
        app.check_model(&name)?;
    }
    Ok(fields)
}

/// The ids of `prompt`, or of `messages` in the model's own format.
pub async fn tokenize(
    State(app): State<&'static App>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let mut fields = fields(app, body).await?;
    let answer = body::in_background(move || {
        let tokenizer = served.tokenizer()?;
        let shows_strings = fields.boolean("return_token_strs")?.unwrap_or(false);
        let ids = if fields.has("messages") {
            let ids = chat::take(&mut fields, served)?.prompt(served)?.0;
            fields.finish()?;
            ids
        } else {
            let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
            let text = fields.require("prompt")?;
            let text =
                text.as_str().ok_or_else(|| super::fields::wrong("prompt", "a string", &text))?;
            let text = text.to_string();
            fields.finish()?;
            let options = EncodeOptions { add_special_tokens, parse_special: true };
            tokenizer.encode_with(&text, options)?
        };
        let mut answer =
            json!({"count": ids.len(), "max_model_len": served.context, "tokens": ids});
        if shows_strings {
            let strings = ids.iter().map(|id| token_text(Some(tokenizer), *id));
            answer["token_strs"] = strings.collect();
        }
        Ok(answer)
    });
    Ok(json_response(StatusCode::OK, &answer.await?))
}

/// The text of `tokens`.
pub async fn detokenize(
    State(app): State<&'static App>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let served = app.served()?;
    let mut fields = fields(app, body).await?;
    let Some(tokens) = fields.array("tokens")? else {
        return Err(fields.require("tokens").expect_err("it is not there"));
    };
    fields.finish()?;
    let ids = token_ids("tokens", &tokens)?;
    let text = served.tokenizer()?.decode(&ids)?;
    Ok(json_response(StatusCode::OK, &json!({"prompt": text})))
}
