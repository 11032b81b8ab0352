//! `/metrics`: the format is what the scraper asks for.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::Surfaces;
use crate::metrics::{Format, Metrics};

pub async fn metrics(State(surfaces): State<Surfaces>, headers: HeaderMap) -> Response {
    answer(&surfaces.metrics, &headers)
}

/// The answer to a scrape, sent piece by piece.
pub fn answer(metrics: &Metrics, asked: &HeaderMap) -> Response {
    let accept = asked.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    let format = Format::negotiate(accept);
    let pieces = metrics.render(format);
    let length = pieces.iter().map(String::len).sum::<usize>();
    let pieces = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
    let headers = [
        (header::CONTENT_TYPE, format.content_type().to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::VARY, "Accept".to_owned()),
    ];
    (headers, Body::from_stream(stream::iter(pieces))).into_response()
}
