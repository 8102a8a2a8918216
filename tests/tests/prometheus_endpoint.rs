//! The /metrics endpoint: as HTTP, as promtool sees its text, as a real Prometheus scrapes it.

#![expect(clippy::disallowed_methods, reason = "tests start servers and talk to the endpoint themselves")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use sysops_agent::deliver::export::{Exporter, exposition, prometheus};
use sysops_tests::feed::{HOSTILE, Hand, reported, run, start, text, until};
use sysops_tests::servers::{Scratch, Server, find_program, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn endpoint(port: u16) -> Box<dyn Exporter> {
    let bind = ("prometheus.bind", text(format!("127.0.0.1:{port}")));
    start(&prometheus::ENTRY, "h", &Rc::new(Hand::with_each_kind()), &[bind]).expect("a free port")
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.expect("it listens")
}

/// One request on a connection of its own, up to its end.
async fn ask(port: u16, head: &str) -> String {
    let mut stream = connect(port).await;
    stream.write_all(format!("{head}\r\nHost: h\r\nConnection: close\r\n\r\n").as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text until the end");
    answer
}

#[test]
fn promtool_finds_nothing_to_say() {
    let Some(promtool) = find_program("promtool") else { return };
    let mut rendered = String::new();
    exposition::render(&Hand::with_each_kind(), &mut rendered);
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    child.stdin.take().expect("piped").write_all(rendered.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}\n{rendered}");
}

#[test]
fn methods_and_paths() {
    run(async {
        let port = free_port();
        let server = endpoint(port);
        let answer = ask(port, "GET /metrics?name[]=x HTTP/1.1").await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ok"), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(body.contains("\nsysops_cpu_usage_percent 45.2\n"), "{body}");
        assert!(!body.contains("NaN"), "{body}");

        let (head_of_head, nothing) = {
            let answer = ask(port, "HEAD /metrics HTTP/1.1").await;
            let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
            (head.to_ascii_lowercase(), rest.to_owned())
        };
        assert_eq!(nothing, "");
        assert!(head_of_head.contains(&format!("content-length: {}", body.len())), "{head_of_head}");

        let index = ask(port, "GET / HTTP/1.1").await;
        assert!(index.starts_with("HTTP/1.1 200") && index.contains("<a href=\"/metrics\">"), "{index}");
        let absent = ask(port, "GET /metrics/ HTTP/1.1").await;
        assert!(absent.starts_with("HTTP/1.1 404") && absent.contains("Metrics are at /metrics"), "{absent}");
        let post = ask(port, "POST /metrics HTTP/1.1").await;
        assert!(post.starts_with("HTTP/1.1 405") && post.to_ascii_lowercase().contains("allow: get, head"), "{post}");
        let binary = ask(port, "\u{1}\u{2}\u{3} nonsense").await;
        assert!(binary.starts_with("HTTP/1.1 400") || binary.is_empty(), "{binary}");
        assert_eq!(reported(&*server, "prometheus_scrapes_total", &[]), Some(2.0));
        server.stop().await;
    });
}

#[test]
fn one_connection_serves_many_scrapes_and_ends_with_the_server() {
    run(async {
        let port = free_port();
        let server = endpoint(port);
        let mut stream = connect(port).await;
        for _ in 0..3 {
            stream.write_all(b"HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
            let mut answer = [0; 4096];
            let size = stream.read(&mut answer).await.expect("an answer");
            assert!(answer[..size].starts_with(b"HTTP/1.1 200") && answer[..size].ends_with(b"\r\n\r\n"));
        }
        let started = Instant::now();
        server.stop().await;
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        assert_eq!(stream.read(&mut [0; 16]).await.expect("a clean end"), 0);
        // The port is free again: a reload may start anew.
        endpoint(port).stop().await;
    });
}

#[test]
fn silent_connections_do_not_lock_a_scraper_out() {
    run(async {
        let port = free_port();
        let server = endpoint(port);
        let mut silent = Vec::new();
        for _ in 0..40 {
            let mut stream = connect(port).await;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").await.expect("written");
            silent.push(stream);
        }
        let answer = ask(port, "GET /metrics HTTP/1.1").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let evicted = reported(&*server, "prometheus_connections_evicted_total", &[]).expect("a count");
        assert!((8.0..=10.0).contains(&evicted), "{evicted}");
        // The first ones are gone, the last ones still there.
        assert!(matches!(silent[0].read(&mut [0; 16]).await, Ok(0) | Err(_)));
        let last = tokio::time::timeout(Duration::from_millis(50), silent[39].read(&mut [0; 16])).await;
        assert!(last.is_err(), "{last:?}");
        server.stop().await;
    });
}

#[test]
fn an_address_that_is_taken_is_named_with_the_way_to_find_its_holder() {
    run(async {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = holder.local_addr().expect("bound");
        let bind = ("prometheus.bind", text(address.to_string()));
        let Err(error) = start(&prometheus::ENTRY, "h", &Rc::new(Hand::default()), &[bind]) else {
            panic!("the port is taken")
        };
        assert!(error.contains(&format!("cannot listen on {address}: Address already in use")), "{error}");
        assert!(error.contains(&format!("`ss -ltnp 'sport = :{}'`", address.port())), "{error}");

        for bad in ["localhost", "127.0.0.1", ":9100", "1.2.3.4:99999"] {
            let Err(error) =
                start(&prometheus::ENTRY, "h", &Rc::new(Hand::default()), &[("prometheus.bind", text(bad))])
            else {
                panic!("{bad} is no address with a port")
            };
            assert!(error.starts_with("prometheus.bind: expected address:port"), "{error}");
        }
        let path = ("prometheus.path", text("metrics"));
        assert!(start(&prometheus::ENTRY, "h", &Rc::new(Hand::default()), &[path]).is_err());
    });
}

#[test]
fn a_real_prometheus_scrapes_it() {
    let Some(program) = find_program("prometheus") else { return };
    run(async {
        let port = free_port();
        let endpoint = endpoint(port);
        let scratch = Scratch::new();
        let configuration = scratch.file(
            "prometheus.yml",
            &format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: sysops\n  \
                 static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
            ),
        );
        let web = free_port();
        let arguments = [
            format!("--config.file={}", configuration.display()),
            format!("--storage.tsdb.path={}", scratch.path().join("data").display()),
            format!("--web.listen-address=127.0.0.1:{web}"),
        ];
        // Prometheus asks this thread: starting it must not keep the endpoint from answering.
        let started = tokio::task::spawn_blocking(move || Server::start(&program, &arguments, web, scratch));
        let server = started.await.expect("Prometheus starts");
        let query = |query: &'static str| async move {
            let answer = ask(web, &format!("GET /api/v1/query?query={query} HTTP/1.1")).await;
            answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let up = query("up").await;
            if up.contains("\"1\"]") {
                break;
            }
            assert!(Instant::now() < deadline, "{up}\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let usage = query("sysops_cpu_usage_percent").await;
        assert!(usage.contains("\"45.2\"]"), "{usage}");
        let quantile = query("histogram_quantile(0.5,sysops_block_io_latency_seconds_bucket)").await;
        assert!(quantile.contains("\"device\":\"sda\""), "{quantile}");
        let answer: serde_json::Value = serde_json::from_str(&query("sysops_zz_text_bytes").await).expect("JSON");
        assert_eq!(answer["data"]["result"][0]["metric"]["text"], HOSTILE, "{answer}");
        until("scrapes are counted", Duration::from_secs(5), || {
            reported(&*endpoint, "prometheus_scrapes_total", &[]) >= Some(1.0)
        })
        .await;
        endpoint.stop().await;
    });
}
