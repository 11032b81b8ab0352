//! What answers and is no web server.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn who_speaks_before_being_asked_does_not_speak_http_however_early_that_is() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let greets = async {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            // Before the request is sent, while it is, or after it.
            stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.expect("a client that listens");
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    };
    let asks = async {
        let instance = Instance { name: "ann".to_owned(), port, base_dir: "/nowhere".into(), uid: u32::MAX };
        let trace = TraceContext::unsampled();
        for _ in 0..200 {
            let mut client = Client::new(&instance, &trace);
            let failure =
                client.get("/", Proof::Nobody, Duration::from_secs(10)).await.expect_err("no answer");
            assert_eq!(failure.reason, Reason::Malformed, "{}", failure.detail);
        }
    };
    tokio::select! {
        () = asks => {}
        () = greets => {}
    }
}
