//! `/api/v1/rollout/VERSION`: how a build does that users have got, as a judgement in JSON.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Surfaces;
use crate::docket::live;
use crate::t3::version::Version;

pub async fn rollout(State(surfaces): State<Surfaces>, Path(version): Path<String>) -> Response {
    let version: Version = match version.parse() {
        Ok(version) => version,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let config = surfaces.config.borrow().clone();
    Json(live::judged(&config, &version, surfaces.history.reader()).await).into_response()
}
