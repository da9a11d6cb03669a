//! What the demo shows, each with a check: a claim that does not hold is said so.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::mesh::Mesh;
use super::traffic::{Stream, burst};
use crate::fetch::Connection;
use crate::print::{reason, table};

const USERS: &str = "http://user-service:8080/api/v1/users/1";

/// The outcome of one claim.
struct Claim {
    holds: bool,
    text: String,
    /// What was seen, shown below.
    seen: String,
}

impl Claim {
    fn new(holds: bool, text: impl Into<String>, seen: impl Into<String>) -> Claim {
        Claim { holds, text: text.into(), seen: seen.into() }
    }
}

/// Shows everything in order. Answers how many claims did not hold.
pub(super) async fn walk(mesh: &Mesh) -> Result<usize> {
    let mut failed = 0;
    for claim in [
        order(mesh).await.context("placing an order")?,
        split(mesh).await.context("counting the split")?,
        header_routing(mesh).await.context("routing by header")?,
        fault(mesh).await.context("injecting a fault")?,
        retry(mesh).await.context("retrying")?,
        plaintext(mesh).await.context("speaking plaintext")?,
        edit(mesh).await.context("editing a weight")?,
    ] {
        println!("{} {}", if claim.holds { "[ok]    " } else { "[FAILED]" }, claim.text);
        for line in claim.seen.lines() {
            println!("           {line}");
        }
        failed += usize::from(!claim.holds);
    }
    Ok(failed)
}

/// A customer's six steps, each hop as the proxies saw it.
async fn order(mesh: &Mesh) -> Result<Claim> {
    let body = json!({"user": 7, "product": 2, "quantity": 3});
    let mut customer = mesh.customer().await?;
    let started = Instant::now();
    let headers = [("host", super::folder::HOST)];
    let answer = customer.send(Method::POST, "/api/v1/orders", &headers, Some(&body)).await?;
    let took = started.elapsed();
    // The gateway gives the request its name: it takes none from outside.
    let id = answer.json()["served"]["request_id"].as_str().unwrap_or_default().to_owned();
    let paid = answer.status == 201 && answer.json()["order"]["state"] == "paid";

    // (step, from, to, workloads whose proxy took the request in, identity that it must have verified)
    let hops = [
        ("1 customer", "gateway", vec!["ingressgateway"], ""),
        (
            "2 gateway",
            "order",
            vec!["order-v1"],
            "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account",
        ),
        ("3 order", "user", vec!["user-v1", "user-v2"], "spiffe://cluster.local/ns/ecommerce/sa/order-service"),
        ("4 order", "product", vec!["product-v1"], "spiffe://cluster.local/ns/ecommerce/sa/order-service"),
        ("5 order", "payment", vec!["payment-v1"], "spiffe://cluster.local/ns/ecommerce/sa/order-service"),
    ];
    let mut rows = Vec::new();
    let mut proven = true;
    for (from, to, takers, identity) in hops {
        let line = inbound_line(mesh, &takers, &id).await?;
        let text = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
        proven &= line["response_code"] != Value::Null
            && (identity.is_empty() || text("peer") == identity)
            && text("tls").starts_with("TLSv1.");
        let shown = if identity.is_empty() { "(none: a customer)".to_owned() } else { text("peer") };
        rows.push(vec![
            from.to_owned(),
            to.to_owned(),
            shown,
            text("tls"),
            plain(&line["response_code"]),
            format!("{} ms", plain(&line["duration"])),
        ]);
    }
    rows.push(vec![
        "6 gateway".to_owned(),
        "customer".to_owned(),
        String::new(),
        String::new(),
        answer.status.to_string(),
        format!("{:.0} ms", took.as_secs_f64() * 1e3),
    ]);
    let shown = table(&["FROM", "TO", "VERIFIED IDENTITY OF THE CALLER", "TLS", "STATUS", "LATENCY"], &rows);
    let refused = if paid { String::new() } else { format!("{}\n", answer.text().trim()) };
    Ok(Claim::new(
        paid && proven,
        "an order goes customer -> gateway -> order -> user, product, payment and back; every hop inside is mutual TLS",
        refused + &shown,
    ))
}

/// The access log's line of a request at whichever of the proxies took it in. Logs are written a moment later.
async fn inbound_line(mesh: &Mesh, takers: &[&str], id: &str) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        for name in takers {
            let workload = mesh.folder.workload(name)?;
            let log = fs::read_to_string(mesh.log_of(workload)).unwrap_or_default();
            let is_it = |line: &Value| {
                line["request_id"] == id
                    && (workload.is_gateway()
                        || line["upstream_cluster"].as_str().is_some_and(|cluster| cluster.starts_with("inbound|")))
            };
            if let Some(line) = log.lines().filter_map(|line| serde_json::from_str(line).ok()).find(is_it) {
                return Ok(line);
            }
        }
        if Instant::now() > deadline {
            return Ok(Value::Null);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn split(mesh: &Mesh) -> Result<Claim> {
    let outbound = mesh.outbound(mesh.folder.workload("order-v1")?);
    let tally = burst(&outbound, USERS, &[], 1_000).await?;
    // 1,000 draws at 10 %: four standard deviations are 38.
    let holds = tally.failed() == 0 && tally.of("v1") + tally.of("v2") == 1_000 && (62..=138).contains(&tally.of("v2"));
    Ok(Claim::new(holds, "weights 90/10 split 1,000 requests for user-service", tally.told()))
}

async fn header_routing(mesh: &Mesh) -> Result<Claim> {
    let outbound = mesh.outbound(mesh.folder.workload("order-v1")?);
    let by_version = burst(&outbound, USERS, &[("version", "v2")], 100).await?;
    let proposals = "http://recommendation-service:8080/api/v1/recommendations/1";
    let beta = burst(&outbound, proposals, &[("user-group", "beta-users")], 20).await?;
    let korea = burst(&outbound, proposals, &[("country", "KR")], 20).await?;
    let others = burst(&outbound, proposals, &[], 20).await?;
    let holds = by_version.of("v2") == 100
        && beta.of("ml-v2") == 20
        && korea.of("korea-optimized") == 20
        && others.of("stable") == 20;
    let rows = [
        ("version: v2", by_version),
        ("user-group: beta-users", beta),
        ("country: KR", korea),
        ("(no header)", others),
    ];
    let rows: Vec<Vec<String>> = rows.iter().map(|(header, tally)| vec![(*header).to_owned(), tally.told()]).collect();
    Ok(Claim::new(holds, "headers choose the version", table(&["HEADER", "SERVED BY"], &rows)))
}

async fn fault(mesh: &Mesh) -> Result<Claim> {
    let workload = mesh.folder.workload("order-v1")?;
    let mut connection = Connection::open(&mesh.outbound(workload)).await?;
    let id = request_id();
    let headers = [("x-demo-fault", "abort"), ("x-request-id", id.as_str())];
    let answer = connection.send(Method::GET, "http://product-service:8080/api/v1/products/1", &headers, None).await?;
    let reasons = crate::mesh::Mesh::at(&mesh.debug).failures(&format!("/why?request_id={id}"), None).await?.0;
    let explained = reasons.iter().any(|why| why.flag == "FI" && why.object.contains("product-service"));
    let seen = reasons
        .first()
        .map_or_else(|| "no proxy explains it".to_owned(), |why| format!("meshctl why {id}\n{}", reason(why)));
    Ok(Claim::new(
        answer.status == 503 && explained,
        "a fault is injected where the VirtualService says so, and `meshctl why` names it",
        seen,
    ))
}

async fn retry(mesh: &Mesh) -> Result<Claim> {
    let mut customer = mesh.customer().await?;
    let body = json!({"user": 7, "product": 0, "quantity": 1});
    let headers = [("host", super::folder::HOST), ("x-demo-flaky", "1")];
    let answer = customer.send(Method::POST, "/api/v1/orders", &headers, Some(&body)).await?;
    let order = answer.json();
    let attempt = &order["calls"][2]["attempt"];
    let seen = format!(
        "the customer sees {}; payment answered 503 first, then attempt {} succeeded",
        answer.status,
        plain(attempt)
    );
    Ok(Claim::new(answer.status == 201 && *attempt == 2, "a retry saves an order whose payment failed once", seen))
}

async fn plaintext(mesh: &Mesh) -> Result<Claim> {
    let payment = mesh.folder.workload("payment-v1")?;
    let mut stream = TcpStream::connect(format!("{}:8080", payment.address)).await?;
    stream.write_all(b"GET /api/v1/payments/history/7 HTTP/1.1\r\nhost: payment-service\r\n\r\n").await?;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut bytes)).await;
    let refused = matches!(read, Ok(Ok(_) | Err(_))) && bytes.is_empty();
    let seen = match read {
        Ok(_) if bytes.is_empty() => "the connection was closed without an answer".to_owned(),
        Ok(_) => format!("answered: {}", String::from_utf8_lossy(&bytes)),
        Err(_) => "the connection was left open".to_owned(),
    };
    Ok(Claim::new(refused, "plaintext to the payment service is refused under STRICT mutual TLS", seen))
}

async fn edit(mesh: &Mesh) -> Result<Claim> {
    let outbound = mesh.outbound(mesh.folder.workload("order-v1")?);
    let streams: Vec<Stream> = (0..4).map(|_| Stream::start(outbound.clone(), USERS.to_owned(), "v2")).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let file = mesh.folder.path("config/user-service.yaml");
    let text = fs::read_to_string(&file)?;
    let edited = text.replace("weight: 90", "weight: 0").replace("weight: 10", "weight: 100");
    anyhow::ensure!(edited != text, "the sample's weights are not 90 and 10");
    let written = Instant::now();
    fs::write(&file, edited)?;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let (mut total, mut failed, mut slowest, mut told) = (0, 0, Some(Duration::ZERO), Vec::new());
    for stream in streams {
        let (tally, since) = stream.stop().await?;
        total += tally.total();
        failed += tally.failed();
        slowest = slowest.zip(since).map(|(slowest, since)| slowest.max(since.saturating_duration_since(written)));
        told.extend((tally.failed() > 0).then(|| tally.told()));
    }
    fs::write(&file, text)?;
    let seen = match slowest {
        Some(slowest) => format!(
            "{total} requests during the edit, {failed} lost; all go to v2 {} ms after the file was written",
            slowest.as_millis()
        ),
        None => {
            format!("{total} requests during the edit, {failed} lost; the new weights did not take effect within 1.2 s")
        }
    };
    let holds = failed == 0 && slowest.is_some();
    Ok(Claim::new(
        holds,
        "an edited weight takes effect while requests run, and none is lost",
        format!("{seen}\n{}", told.join("\n")),
    ))
}

/// A number or text as it is, without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { "-".to_owned() } else { value.to_string() }, str::to_owned)
}

/// An id of the shape that proxies make: a random UUID (RFC 9562, version 4).
fn request_id() -> String {
    let bits: u128 = rand::random();
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
