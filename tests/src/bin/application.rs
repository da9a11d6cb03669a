//! An application that knows nothing of the mesh: it listens, or calls, over plain sockets. The capture test runs it where
//! nothing but the network tells it apart from any other program.
//!
//! `application serve HTTP-ADDRESS GREETING-ADDRESS…`, `application get ADDRESS HOST PATH`, `application greet ADDRESS WORD`

use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// A call that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", http, greeting @ ..] => serve(http, greeting),
        ["get", address, host, path] => get(address, host, path),
        ["greet", address, word] => greet(address, word),
        _ => Err(Error::other("serve HTTP-ADDRESS GREETING-ADDRESS…, get ADDRESS HOST PATH, or greet ADDRESS WORD")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(http: &str, greeting: &[&str]) -> Result<()> {
    for address in greeting {
        let listener = TcpListener::bind(address)?;
        std::thread::spawn(move || accept(&listener, speak_first));
    }
    accept(&TcpListener::bind(http)?, answer);
    Ok(())
}

fn accept(listener: &TcpListener, serve: fn(TcpStream) -> Result<()>) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}

/// Answers each request with its own head, and who connected.
fn answer(mut stream: TcpStream) -> Result<()> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut head = format!("connected from {peer}\n");
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            head += &line;
        }
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len())?;
    }
}

/// Says hello before it is spoken to, then gives back a line in capitals.
fn speak_first(mut stream: TcpStream) -> Result<()> {
    writeln!(stream, "hello {}", stream.peer_addr()?.ip().to_canonical())?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    stream.write_all(line.to_uppercase().as_bytes())
}

fn connect(address: &str) -> Result<TcpStream> {
    let address = address.parse().map_err(Error::other)?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn get(address: &str, host: &str, path: &str) -> Result<()> {
    let mut stream = connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.is_empty() {
        return Err(Error::other("closed without an answer"));
    }
    print!("{text}");
    Ok(())
}

fn greet(address: &str, word: &str) -> Result<()> {
    let mut stream = connect(address)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut greeting, mut reply) = (String::new(), String::new());
    reader.read_line(&mut greeting)?;
    if greeting.is_empty() {
        return Err(Error::other("closed without a greeting"));
    }
    writeln!(stream, "{word}")?;
    reader.read_line(&mut reply)?;
    print!("{greeting}{reply}");
    Ok(())
}
