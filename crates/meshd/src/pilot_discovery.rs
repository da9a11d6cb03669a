//! `pilot-discovery request GET PATH`, as people and tools run it inside of the control plane's container (Istio
//! `pilot/cmd/pilot-discovery`): one page of this control plane's own debug port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A control plane that does not answer in this time hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The words of the request, if the program was called for one: `request METHOD PATH`.
pub fn asked(words: &[String]) -> Option<Result<(String, String)>> {
    let rest = words.get(1..).filter(|rest| rest.first().is_some_and(|word| word == "request"))?;
    // Flags of Istio's that say where the port is have no meaning here.
    let words: Vec<&String> = rest.iter().skip(1).filter(|word| !word.starts_with("--")).collect();
    Some(match words.as_slice() {
        [method, path, ..] => Ok(((*method).clone(), path.trim_start_matches('/').to_owned())),
        _ => Err(anyhow::anyhow!("a request is METHOD PATH, for example: request GET /debug/syncz")),
    })
}

/// Asks, and returns the page.
///
/// # Errors
/// Nothing answers there, or the answer is not 200.
pub fn request(address: SocketAddr, method: &str, path: &str) -> Result<Vec<u8>> {
    let wrong = || format!("the control plane does not answer at {address}");
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(wrong)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection, and is never in chunks.
    let request = format!("{method} /{path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(wrong)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(wrong)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").with_context(wrong)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = answer.split_off(end + 4);
    if head.split(' ').nth(1) != Some("200") {
        let status = head.lines().next().unwrap_or_default();
        bail!("/{path}: {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_a_request_is_one() {
        assert!(asked(&words("meshd --config-dir request")).is_none());
        let (method, path) =
            asked(&words("pilot-discovery request --debug-port=8080 GET /debug/syncz")).unwrap().unwrap();
        assert_eq!((method.as_str(), path.as_str()), ("GET", "debug/syncz"));
        assert!(asked(&words("pilot-discovery request GET")).unwrap().is_err());
    }

    #[test]
    fn the_page_comes_without_its_head_and_a_refusal_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in ["HTTP/1.0 200 OK\r\n\r\n[]", "HTTP/1.0 404 Not Found\r\n\r\nno such page"] {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(request(address, "GET", "debug/syncz").unwrap(), b"[]");
        let error = request(address, "GET", "debug/x").unwrap_err().to_string();
        assert!(error.contains("no such page"), "{error}");
    }
}
