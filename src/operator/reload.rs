//! `POST /-/reload`: config and inventory are read again now, as on SIGHUP.

use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::oneshot;

use super::Surfaces;

/// 200 with what was taken over, 500 with what is wrong; the old state stays in use then.
pub async fn reload(State(surfaces): State<Surfaces>) -> (StatusCode, String) {
    let (answer, done) = oneshot::channel();
    let asked = surfaces.reload.send(answer).await.is_ok();
    match done.await {
        Ok(Ok(report)) if asked => (StatusCode::OK, report),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "t3-prober is stopping\n".to_owned()),
    }
}
