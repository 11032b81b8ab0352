//! `/-/healthy` and `/-/ready`: whether this program lives and has begun its work, never how the instances are.

use axum::extract::State;
use axum::http::StatusCode;

use super::Surfaces;

/// 200 as long as the program can answer at all.
pub async fn healthy() -> &'static str {
    "t3-prober is healthy\n"
}

/// 200 once an inventory was read; 503 with the reason before.
pub async fn ready(State(surfaces): State<Surfaces>) -> (StatusCode, String) {
    let snapshot = surfaces.inventory.snapshot();
    match (snapshot.status.loaded_at, snapshot.status.error) {
        (Some(_), _) => (StatusCode::OK, "t3-prober is ready\n".to_owned()),
        (None, error) => {
            let error = error.unwrap_or_else(|| "the inventory has not been read yet".to_owned());
            (StatusCode::SERVICE_UNAVAILABLE, format!("t3-prober is not ready: {error}\n"))
        }
    }
}
