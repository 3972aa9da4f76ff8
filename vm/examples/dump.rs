//! Writes the code of a program in assembler text (standard input) to standard output.
fn main() {
    use std::io::{Read, Write};
    struct E;
    impl bpftime_vm::LoadEnv for E {
        fn map_by_fd(&mut self, fd: i32) -> Option<bpftime_vm::MapIdx> {
            Some(bpftime_vm::MapIdx(fd as u32))
        }
        fn map_by_index(&mut self, fd: i32) -> Option<bpftime_vm::MapIdx> {
            Some(bpftime_vm::MapIdx(fd as u32))
        }
        fn map_value_len(&self, _: bpftime_vm::MapIdx) -> Option<u32> {
            Some(64)
        }
        fn helper_exists(&self, _: u32) -> bool {
            true
        }
    }
    let mut s = String::new();
    std::io::stdin().read_to_string(&mut s).unwrap();
    let p = bpftime_vm::decode(&bpftime_vm::asm::assemble(&s).unwrap(), &mut E).unwrap();
    let t = std::time::Instant::now();
    let i = bpftime_vm::compile(&p, &Default::default()).unwrap();
    eprintln!("{:?}", t.elapsed());
    std::io::stdout().write_all(i.borrow().code()).unwrap();
}
