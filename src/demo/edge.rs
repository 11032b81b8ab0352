//! The demo's stand-in for the SSO edge: a listener for each user that signs whoever comes in by it in as them, so that
//! a browser needs no more than an address. Only ever on loopback, and only in front of simulated people.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::t3::door::IDENTITY;

#[derive(Clone)]
pub struct Edge {
    pub identity: HeaderValue,
    /// Where the dispatch listens.
    pub dispatch: SocketAddr,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Edge {
    /// Listens on a port of its own until it is stopped; answers the address.
    pub async fn open(self) -> anyhow::Result<SocketAddr> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no free port for an edge")?;
        let address = listener.local_addr().context("cannot read the address of a listener")?;
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        let app = Router::new().fallback(pass).with_state(self);
        tasks.spawn(async move {
            // Ended, not drained: at the demo's end there is nobody to be polite to.
            let _ = stop.run_until_cancelled(axum::serve(listener, app).into_future()).await;
        });
        Ok(address)
    }

    async fn forward(&self, mut request: Request) -> anyhow::Result<Response> {
        let upgrade =
            request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        request.headers_mut().insert(HeaderName::from_static(IDENTITY), self.identity.clone());
        let stream = TcpStream::connect(self.dispatch).await?;
        let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream)).await?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(connection.with_upgrades()).await });
        let mut response = sender.send_request(request).await?;
        if let Some(upgrade) = upgrade.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS) {
            let (answered, stop) = (hyper::upgrade::on(&mut response), self.stop.clone());
            self.tasks.spawn(async move {
                if let (Ok(browser), Ok(dispatch)) = (upgrade.await, answered.await) {
                    let (mut browser, mut dispatch) = (TokioIo::new(browser), TokioIo::new(dispatch));
                    let _ = stop.run_until_cancelled(copy_bidirectional(&mut browser, &mut dispatch)).await;
                }
            });
        }
        Ok(response.map(Body::new))
    }
}

async fn pass(State(edge): State<Edge>, request: Request) -> Response {
    match edge.forward(request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("the demo's edge: {error:#}\n")).into_response(),
    }
}
