//! Init of a container alone, for the tests of this library: they cannot start the `whimbrel` binary.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let fd = match (
        arguments.next().as_deref(),
        arguments.next().and_then(|fd| fd.parse().ok()),
    ) {
        (Some("init"), Some(fd)) => fd,
        _ => std::process::exit(2),
    };
    std::process::exit(whimbrel_process::container::init::main(fd));
}
