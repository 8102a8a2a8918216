//! The least HTTP client that a test needs: one GET to this machine.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The whole answer, head included; empty when there is none.
pub async fn get(port: u16, path: &str) -> String {
    let mut answer = Vec::new();
    if let Ok(mut socket) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        if socket.write_all(request.as_bytes()).await.is_ok() {
            // What came before an error is looked at like any answer.
            let _ = socket.read_to_end(&mut answer).await;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}
