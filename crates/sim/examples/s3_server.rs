//! A real S3 server on loopback, in a temporary folder, until its standard input ends: to try the command by hand.
//! Prints the storage options and a URL, ready to be pasted behind a verb.
//!
//! ```sh
//! cargo run -p fencepost-sim --example s3_server
//! ```

use std::io::{Read, stdin};

use fencepost_sim::S3Server;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let server = S3Server::start(folder.path())?;
    let mut options: Vec<_> = server.storage_options().into_iter().collect();
    options.sort();
    for (name, value) in options {
        print!("--storage-option {name}={value} ");
    }
    println!("{}", server.url("t"));
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
