//! Somebody who issues tokens (JWT): keys, tokens signed with them, and a server that has the keys and can fall silent, talk
//! nonsense and change its mind.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A key with its name.
pub struct Key {
    name: String,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Elliptic(EcdsaKeyPair),
}

impl Key {
    /// For RS256.
    pub fn rsa(name: &str) -> Key {
        Key { name: name.to_owned(), pair: Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()) }
    }

    /// For ES256.
    pub fn elliptic(name: &str) -> Key {
        let pair = Pair::Elliptic(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
        Key { name: name.to_owned(), pair }
    }

    fn algorithm(&self) -> &'static str {
        match &self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Elliptic(_) => "ES256",
        }
    }

    /// What everybody may know of it (JWK).
    pub fn public(&self) -> Value {
        let mut key = match &self.pair {
            Pair::Rsa(pair) => {
                let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
                json!({"kty": "RSA", "n": BASE64.encode(n.big_endian_without_leading_zero()),
                    "e": BASE64.encode(e.big_endian_without_leading_zero())})
            }
            Pair::Elliptic(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": BASE64.encode(x), "y": BASE64.encode(y)})
            }
        };
        key["kid"] = json!(self.name);
        key
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), bytes, &mut signature).unwrap();
                signature
            }
            Pair::Elliptic(pair) => pair.sign(&SystemRandom::new(), bytes).unwrap().as_ref().to_vec(),
        }
    }

    /// A token that says this.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm(), "kid": self.name, "typ": "JWT"}), claims)
    }

    /// A token of which this is said.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        let signed = signed(header, claims);
        format!("{signed}.{}", BASE64.encode(self.sign(signed.as_bytes())))
    }

    /// A token that is signed with what everybody may know of the key, as if that were a secret.
    pub fn confused(&self, claims: &Value) -> String {
        let signed = signed(&json!({"alg": "HS256", "kid": self.name}), claims);
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.public().to_string().as_bytes());
        format!("{signed}.{}", BASE64.encode(hmac::sign(&secret, signed.as_bytes()).as_ref()))
    }
}

fn signed(header: &Value, claims: &Value) -> String {
    format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
}

/// A token that nobody has signed, and says so.
pub fn unsigned(claims: &Value) -> String {
    format!("{}.", signed(&json!({"alg": "none"}), claims))
}

/// A key set.
pub fn key_set(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|key| key.public()).collect::<Vec<_>>()}).to_string()
}

/// Seconds since 1970, so many from now.
pub fn seconds(from_now: i64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().saturating_add_signed(from_now)
}

/// What a server answers: to a path, with a status, more header lines, and a body.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The path.
    pub path: String,
    /// Status; 0 for silence.
    pub status: u16,
    /// Header lines, each with its end.
    pub headers: String,
    /// Body.
    pub body: String,
}

/// A server of a few pages.
pub struct Pages {
    pages: Arc<Mutex<Vec<Page>>>,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
    /// Where it listens.
    pub address: String,
}

impl Pages {
    /// Listens at an address.
    pub async fn serve(address: &str, pages: Vec<Page>) -> Pages {
        let socket = TcpListener::bind(address).await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let (pages, asked) = (Arc::new(Mutex::new(pages)), Arc::<Mutex<Vec<String>>>::default());
        let (known, log) = (pages.clone(), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                tokio::spawn(answer(stream, known.clone(), log.clone()));
            }
        });
        Pages { pages, asked, task, address }
    }

    /// A server with a key set under `/keys`.
    pub async fn of_keys(address: &str, keys: &[&Key]) -> Pages {
        let page = Page { path: "/keys".into(), status: 200, body: key_set(keys), ..Page::default() };
        Self::serve(address, vec![page]).await
    }

    /// From now on these.
    pub fn change(&self, pages: Vec<Page>) {
        *self.pages.lock().unwrap() = pages;
    }

    /// The paths that were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, pages: Arc<Mutex<Vec<Page>>>, asked: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&head);
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(path.clone());
    let page = pages.lock().unwrap().iter().find(|page| page.path == path).cloned();
    let page = page.unwrap_or(Page { status: 404, ..Page::default() });
    if page.status == 0 {
        // It is held open, and nothing comes.
        let _ = stream.read_u8().await;
        return;
    }
    let text = format!(
        "HTTP/1.1 {} x\r\ncontent-length: {}\r\nconnection: close\r\n{}\r\n{}",
        page.status,
        page.body.len(),
        page.headers,
        page.body
    );
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}
