//! `cogvx <command>`.

fn main() -> std::process::ExitCode {
    cogvx::cli::main()
}
