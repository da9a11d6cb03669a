//! An application that knows nothing of the mesh: it listens, or calls, over plain sockets. The capture test runs it where
//! nothing but the network tells it apart from any other program.
//!
//! `application serve HTTP-ADDRESS GREETING-ADDRESS…`, `application get ADDRESS HOST PATH`, `application greet ADDRESS WORD`,
//! `application find NAME`, `application names ADDRESS SERVER-ADDRESS…`

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use mesh_tests::names::{Says, answer as answer_query};

/// A call that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", http, greeting @ ..] => serve(http, greeting),
        ["get", address, host, path] => get(address, host, path),
        ["greet", address, word] => greet(address, word),
        ["find", name] => find(name),
        ["names", address, servers @ ..] => names(address, servers),
        _ => Err(Error::other(
            "serve HTTP-ADDRESS GREETING-ADDRESS…, get ADDRESS HOST PATH, greet ADDRESS WORD, find NAME, or names ADDRESS SERVER-ADDRESS…",
        )),
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

/// Prints the addresses of a name, as the C library finds them.
fn find(name: &str) -> Result<()> {
    let found: BTreeSet<String> = (name, 0).to_socket_addrs()?.map(|address| address.ip().to_string()).collect();
    found.iter().for_each(|address| println!("{address}"));
    Ok(())
}

/// A name server for which every name has one address.
fn names(address: &str, servers: &[&str]) -> Result<()> {
    let says = Says::Addresses(vec![address.parse().map_err(Error::other)?]);
    for server in servers {
        let (socket, listener) = (UdpSocket::bind(server)?, TcpListener::bind(server)?);
        let (over_udp, over_tcp) = (says.clone(), says.clone());
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let _ = answer_query(&query[..length], &over_udp).map(|answer| socket.send_to(&answer, from));
            }
        });
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                    let read = stream.read_exact(&mut query);
                    let Some(answer) = read.ok().and_then(|()| answer_query(&query, &over_tcp)) else { break };
                    let length = u16::try_from(answer.len()).unwrap_or_default().to_be_bytes();
                    if stream.write_all(&[&length, answer.as_slice()].concat()).is_err() {
                        break;
                    }
                }
            }
        });
    }
    loop {
        std::thread::park();
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
    let address = address.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
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
