//! `/metrics`: the format is what the scraper asks for.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;

use super::Surfaces;
use crate::metrics::Format;

pub async fn metrics(State(surfaces): State<Surfaces>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    let format = Format::negotiate(accept);
    (
        [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "Accept")],
        surfaces.metrics.render(format),
    )
}
