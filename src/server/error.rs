//! What a client is told when a request cannot be answered: the error body of OpenAI's API.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use oxgpt_engine::engine::EngineError;
use oxgpt_engine::prompt::TemplateError;
use oxgpt_engine::sampler::SamplingError;
use oxgpt_engine::sequence::GenerationError;
use oxgpt_engine::stop::StopError;
use oxgpt_engine::tokenizer::TokenizerError;
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field at fault, as `messages[2].content`.
    pub param: Option<String>,
    /// A word that programs can act on.
    pub code: Option<&'static str>,
    /// Seconds after which another try is worth it.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request is wrong.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request is wrong.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), ..Self::bad(message) }
    }

    /// A field, or a value of it, that is not supported.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { code: Some("unsupported_parameter"), ..Self::field(param, message) }
    }

    /// Something went wrong that is not the client's doing.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The model is not there yet, or no longer.
    pub fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        ApiError { code: Some(code), retry_after: Some(1), ..error }
    }

    pub fn with_code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    /// What kind of error OpenAI's API calls this.
    pub fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            504 => "timeout_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code
        }})
    }

    /// The whole answer, with that body or another.
    pub fn response(&self, body: &Value) -> Response<Body> {
        let mut response = json_response(self.status, body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// An answer that is one JSON value.
pub fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

impl axum::response::IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        self.response(&self.body())
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::PromptTooLong { .. } => {
                Self::bad(message).with_code("context_length_exceeded")
            }
            EngineError::EmptyPrompt | EngineError::UnknownToken { .. } => Self::bad(message),
            EngineError::Sampling(error) => error.into(),
            _ => Self::internal(message),
        }
    }
}

impl From<SamplingError> for ApiError {
    fn from(error: SamplingError) -> Self {
        let message = error.to_string();
        match error {
            SamplingError::OutOfRange { option, .. } => Self::field(option, message),
            SamplingError::BiasOutOfRange { .. }
            | SamplingError::BiasRepeated { .. }
            | SamplingError::BiasToken { .. } => Self::field("logit_bias", message),
            _ => Self::internal(message),
        }
    }
}

impl From<StopError> for ApiError {
    fn from(error: StopError) -> Self {
        Self::field("stop", error.to_string())
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> Self {
        Self::bad(error.to_string())
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        let message = error.to_string();
        match error {
            TemplateError::NoStack => Self::internal(message),
            _ => Self::field("messages", message),
        }
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> Self {
        let message = error.to_string();
        match error {
            GenerationError::Constraint { .. } => Self::bad(message),
            _ => Self::internal(message),
        }
    }
}
