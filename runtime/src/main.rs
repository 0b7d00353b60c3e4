//! The `kiseki` command.

#[global_allocator]
static MEMORY: kiseki::memory::Memory = kiseki::memory::Memory;

fn main() -> std::process::ExitCode {
    kiseki::memory::set_up();
    kiseki::cli::main()
}
