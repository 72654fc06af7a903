use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

/// Words between blanks.
fn of(line: &str) -> Arguments {
    Arguments::parse(line.split_whitespace().map(str::to_owned).collect())
}

fn plan(number: u8) -> Plan {
    let file = |name: &str| PathBuf::from(format!("/dev/shm/{name},{number}"));
    Plan {
        monitor: format!("/run/whimbrel/{number},a.qmp").into(),
        pid_file: format!("/run/whimbrel/{number}.pid").into(),
        ram_files: ["ram", "pc.ram", MEM_PATH]
            .into_iter()
            .map(|id| (id.to_owned(), file(id)))
            .collect(),
    }
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

fn file_names(arguments: &Arguments) -> Vec<String> {
    let names = arguments.files().into_iter();
    names
        .map(|file| file.path.to_string_lossy().into_owned())
        .collect()
}

/// As a person starts one.
const SHOP: &str = "/usr/bin/qemu-system-x86_64 -name guest=shop,debug-threads=on --machine q35,memory-backend=ram \
    -accel kvm -cpu host -m 2G -object memory-backend-file,id=ram,size=2G,mem-path=/dev/shm/shop,share=on,prealloc=on \
    -drive file=/srv/a,,b.qcow2,format=qcow2,if=virtio -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd \
    -cdrom /srv/install.iso -kernel /boot/vmlinuz -initrd /boot/initrd.img -append -S \
    -netdev tap,id=n0,ifname=tap7,script=no,downscript=no -device virtio-net-pci,netdev=n0,romfile=/srv/rom \
    -qmp unix:/run/shop.qmp,server,nowait -serial mon:unix:/run/shop.tty,server=on -monitor unix:/run/shop.hmp,server=on,wait=off \
    -vnc unix:/run/shop.vnc,password=on -nographic -S -incoming tcp:0:4444 -pidfile /run/shop.pid -no-reboot -daemonize";

/// As libvirt starts one.
const LIBVIRT: &str = r#"/usr/bin/qemu-system-x86_64 -name guest=web,debug-threads=on -S
    -object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/libvirt/qemu/domain-1-web/master-key.aes"}
    -blockdev {"driver":"file","filename":"/usr/share/OVMF/OVMF_CODE_4M.fd","node-name":"libvirt-pflash0-storage","auto-read-only":true,"discard":"unmap"}
    -blockdev {"node-name":"libvirt-pflash0-format","read-only":true,"driver":"raw","file":"libvirt-pflash0-storage"}
    -machine pc-q35-7.2,usb=off,vmport=off,dump-guest-core=off,memory-backend=pc.ram,pflash0=libvirt-pflash0-format
    -accel kvm -cpu host,migratable=on -m size=4194304k
    -object {"qom-type":"memory-backend-ram","id":"pc.ram","size":4294967296}
    -overcommit mem-lock=off -smp 2,sockets=2,cores=1,threads=1 -uuid 6f1f1f1e-1111-4222-8333-444455556666
    -no-user-config -nodefaults -chardev socket,id=charmonitor,fd=23,server=on,wait=off
    -mon chardev=charmonitor,id=monitor,mode=control -rtc base=utc,driftfix=slew -global kvm-pit.lost_tick_policy=delay
    -no-hpet -no-shutdown -global ICH9-LPC.disable_s3=1 -boot strict=on
    -device {"driver":"pcie-root-port","port":16,"chassis":1,"id":"pci.1","bus":"pcie.0","multifunction":true,"addr":"0x2"}
    -blockdev {"driver":"nbd","server":{"type":"inet","host":"10.0.0.9","port":"10809"},"export":"web","node-name":"libvirt-2-storage","read-only":false}
    -blockdev {"driver":"host_device","filename":"/dev/vg0/web","node-name":"libvirt-1-storage","cache":{"direct":true}}
    -blockdev {"node-name":"libvirt-1-format","read-only":false,"driver":"raw","file":"libvirt-1-storage"}
    -device {"driver":"virtio-blk-pci","bus":"pci.4","addr":"0x0","drive":"libvirt-1-format","id":"virtio-disk0","bootindex":1}
    -netdev tap,fd=25,vhost=on,vhostfd=27,id=hostnet0
    -netdev {"type":"tap","fd":"35","vhost":true,"vhostfd":"36","id":"hostnet1"}
    -device {"driver":"virtio-net-pci","netdev":"hostnet0","id":"net0","mac":"52:54:00:00:00:01","bus":"pci.1","addr":"0x0"}
    -chardev pty,id=charserial0 -device {"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}
    -chardev socket,id=charchannel0,fd=22,server=on,wait=off
    -audiodev {"id":"audio1","driver":"none"} -vnc 127.0.0.1:0,audiodev=audio1 -device {"driver":"VGA","id":"video0","vgamem_mb":16}
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -msg timestamp=on"#;

#[test]
fn a_machine_of_a_person_is_understood() {
    let shop = of(SHOP);
    assert_eq!(shop.program(), "/usr/bin/qemu-system-x86_64");
    assert_eq!(shop.name().as_deref(), Some("shop"));
    assert_eq!(shop.monitors(), paths(&["/run/shop.qmp"]));
    let sockets = ["/run/shop.qmp", "/run/shop.tty", "/run/shop.hmp", "/run/shop.vnc"];
    assert_eq!(shop.listening(), paths(&sockets));
    let files = [
        "/dev/shm/shop",
        "/srv/a,b.qcow2",
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/srv/install.iso",
        "/boot/vmlinuz",
        "/boot/initrd.img",
        "/srv/rom",
    ];
    assert_eq!(file_names(&shop), files);
    let usages: Vec<FileUse> = shop.files().iter().map(|file| file.usage).take(4).collect();
    let disk = |read_only| FileUse::Disk { read_only };
    assert_eq!(usages, [FileUse::Memory, disk(false), disk(true), disk(true)]);
    let tap = NeededDevice::Interface {
        name: "tap7".to_owned(),
        bridge: false,
    };
    assert_eq!(shop.devices(), [tap]);
    let [ram] = shop.memory().try_into().unwrap();
    assert_eq!((ram.id.as_str(), ram.size.as_deref()), ("ram", Some("2G")));
    assert_eq!(ram.mem_path.as_deref(), Some(Path::new("/dev/shm/shop")));
    assert_eq!(
        (ram.kind, ram.share, ram.prealloc),
        (BackendKind::File, true, true)
    );
    assert_eq!(shop.unfit(), []);
}

#[test]
fn the_same_machine_is_started_at_the_destination() {
    let words = of(SHOP).for_destination(&plan(1)).join(" ");
    let expected = "/usr/bin/qemu-system-x86_64 -name guest=shop,debug-threads=on --machine q35,memory-backend=ram \
        -accel kvm -cpu host -m 2G -object memory-backend-file,id=ram,size=2G,mem-path=/dev/shm/ram,,1,share=on,prealloc=on \
        -drive file=/srv/a,,b.qcow2,format=qcow2,if=virtio -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd \
        -cdrom /srv/install.iso -kernel /boot/vmlinuz -initrd /boot/initrd.img -append -S \
        -netdev tap,id=n0,ifname=tap7,script=no,downscript=no -device virtio-net-pci,netdev=n0,romfile=/srv/rom \
        -qmp unix:/run/shop.qmp,server,nowait -serial mon:unix:/run/shop.tty,server=on,wait=off -monitor unix:/run/shop.hmp,server=on,wait=off \
        -vnc unix:/run/shop.vnc,password=on -nographic -no-reboot \
        -chardev socket,server=on,wait=off,id=whimbrel-monitor,path=/run/whimbrel/1,,a.qmp -mon chardev=whimbrel-monitor,mode=control \
        -pidfile /run/whimbrel/1.pid -S -incoming defer";
    assert_eq!(words, expected);
    let there = of(&words);
    let monitors = ["/run/shop.qmp", "/run/whimbrel/1,a.qmp"];
    assert_eq!(there.monitors(), paths(&monitors));
    assert_eq!(
        there.for_destination(&plan(2)),
        of(SHOP).for_destination(&plan(2))
    );
}

#[test]
fn a_machine_of_libvirt_needs_a_command() {
    let web = of(LIBVIRT);
    assert_eq!(web.name().as_deref(), Some("web"));
    assert_eq!(web.monitors(), paths(&[]));
    let files = [
        "/var/lib/libvirt/qemu/domain-1-web/master-key.aes",
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
    ];
    assert_eq!(file_names(&web), files);
    let disk = NeededDevice::Node {
        path: "/dev/vg0/web".into(),
        option: "-blockdev".to_owned(),
        usage: FileUse::Disk { read_only: false },
    };
    assert_eq!(web.devices(), [disk]);
    assert_eq!(web.network_disks(), ["nbd 10.0.0.9:10809 web"]);
    let [ram] = web.memory().try_into().unwrap();
    assert_eq!(
        (ram.kind, ram.size.as_deref()),
        (BackendKind::Ram, Some("4294967296"))
    );
    let unfit = web.unfit();
    assert!(unfit.iter().all(|unfit| unfit.severity == Severity::Starts));
    let options: Vec<&str> = unfit.iter().map(|unfit| unfit.option.as_str()).collect();
    let expected = [
        "-chardev charmonitor",
        "-netdev hostnet0",
        "-netdev hostnet1",
        "-chardev charchannel0",
    ];
    assert_eq!(options, expected);
    assert_eq!(
        unfit[1].to_string(),
        "-netdev hostnet0 takes a descriptor that was open when QEMU was started (fd=25): give the command that starts \
         the machine at the destination"
    );
}

#[test]
fn memory_is_found_in_every_form() {
    let memory = of(
        r#"kvm -mem-path /dev/hugepages -mem-prealloc -object memory-backend-memfd,id=a,size=1G,hugetlb=on
           -object {"qom-type":"memory-backend-memfd","id":"b","size":1073741824,"share":false}
           -object memory-backend-file,size=1G,id=c,mem-path=/x -object rng-random,id=r,filename=/dev/urandom"#,
    )
    .memory();
    let facts: Vec<_> = memory
        .iter()
        .map(|backend| {
            (
                backend.id.as_str(),
                backend.share,
                backend.prealloc,
                backend.hugetlb,
            )
        })
        .collect();
    let expected = [
        (MEM_PATH, false, true, false),
        ("a", true, false, true),
        ("b", false, false, false),
        ("c", false, false, false),
    ];
    assert_eq!(facts, expected);
    assert_eq!(memory[0].mem_path.as_deref(), Some(Path::new("/dev/hugepages")));
}

#[test]
fn monitors_are_those_that_listen_in_control_mode() {
    let arguments = of(
        "kvm -qmp-pretty unix:path=/a,server=on,wait=off -qmp unix:/b -qmp tcp:127.0.0.1:4444,server=on \
        -chardev socket,id=c,path=/c,server=on,wait=off -mon c,mode=control \
        -chardev socket,id=d,path=/d,server=on,wait=off -mon chardev=d,mode=readline -mon chardev=d \
        -chardev socket,id=e,path=/e -mon chardev=e,mode=control \
        -chardev socket,id=f,path=/f,server=on -qmp chardev:f -monitor unix:/g,server,nowait \
        -chardev socket,id=h,path=h,abstract=on,server=on -mon chardev=h,mode=control",
    );
    assert_eq!(arguments.monitors(), paths(&["/a", "/c", "/f"]));
    assert_eq!(arguments.listening(), paths(&["/a", "/c", "/d", "/f", "/g"]));
    let sockets: Vec<_> = arguments
        .files()
        .into_iter()
        .map(|file| (file.path, file.usage))
        .collect();
    let client = |path: &str| (PathBuf::from(path), FileUse::Socket);
    assert_eq!(sockets, [client("/b"), client("/e")]);
    let other = of(
        "kvm -display vnc=unix:/v -spice unix=on,addr=/s,disable-ticketing=on \
        -netdev stream,id=n,server=on,addr.type=unix,addr.path=/n",
    );
    assert_eq!(other.listening(), paths(&["/v", "/s", "/n"]));
}

#[test]
fn disks_are_files_devices_or_elsewhere() {
    let disks = of(
        r#"kvm first.img -hda file:/a:b -hdb nbd:10.0.0.9:10809 -hdc fat:rw:/dir -drive file=rbd:pool/image,if=none
           -drive file=/ov.qcow2,backing.file.filename=/base,backing.driver=qcow2,file.locking=off
           -drive driver=qcow2,file.driver=https,file.url=https://h/x -blockdev driver=file,filename=/c,,d,node-name=n
           -blockdev {"driver":"qcow2","node-name":"q","file":{"driver":"file","filename":"/q"},"backing":null}
           -drive file=nbd+unix:///web?socket=/run/nbd -hdd json:{"driver":"raw","file":{"driver":"iscsi","portal":"p","target":"t"}}
           -fda /dev/fd0 -drive if=pflash,file=null-co:// -bios bios.bin -option-rom /o.rom"#,
    );
    let files = [
        "first.img",
        "/a:b",
        "/dir",
        "/ov.qcow2",
        "/base",
        "/c,d",
        "/q",
        "/o.rom",
    ];
    assert_eq!(file_names(&disks), files);
    let network = [
        "nbd:10.0.0.9:10809",
        "rbd:pool/image",
        "https https://h/x",
        "nbd+unix:///web?socket=/run/nbd",
        "iscsi p t",
    ];
    assert_eq!(disks.network_disks(), network);
    assert!(
        matches!(&disks.devices()[..], [NeededDevice::Node { path, .. }] if path == Path::new("/dev/fd0"))
    );
}

#[test]
fn what_is_unfit_is_named_with_its_cure() {
    let severities = |line: &str| {
        let unfit = of(&format!("kvm {line}")).unfit();
        unfit.iter().map(|unfit| unfit.severity).collect::<Vec<_>>()
    };
    for line in [
        "-device vfio-pci,host=01:00.0",
        r#"-device {"driver":"vfio-pci","host":"0000:01:00.0","id":"hostdev0"}"#,
        "-device vhost-user-fs-pci,chardev=c,tag=t",
        "-netdev vhost-user,id=n,chardev=c",
        "-device ivshmem-plain,memdev=m",
        "-drive file=/a,snapshot=on",
        "-snapshot",
        "-object sev-guest,id=s",
        "-drive file=nvme://0000:04:00.0/1",
        r#"-blockdev {"driver":"raw","file":{"driver":"nvme","device":"x","namespace":1},"node-name":"n"}"#,
    ] {
        assert_eq!(severities(line), [Severity::Moves], "{line}");
    }
    for line in [
        "-add-fd fd=3,set=1",
        "-drive file=/dev/fdset/1",
        "-netdev tap,id=n,fds=3:4",
        "-netdev stream,id=n,addr.type=fd,addr.str=3",
        r#"-netdev {"type":"stream","id":"n","addr":{"type":"fd","str":"3"}}"#,
        "-chroot /jail",
        "-daemonize -hda disk.img",
    ] {
        assert_eq!(severities(line), [Severity::Starts], "{line}");
    }
    for line in [
        "-runas nobody -incoming fd:3 -hda disk.img",
        "-append root=/dev/fdset/1,fd=3 -name fd=3",
        "-netdev tap,id=n,ifname=t,vhost=on",
        "-blockdev driver=file,filename=/a,node-name=fd",
    ] {
        assert_eq!(severities(line), [], "{line}");
    }
    assert_eq!(
        severities("-add-fd fd=3,set=1 -snapshot"),
        [Severity::Moves, Severity::Starts]
    );
}

#[test]
fn a_process_tells_its_command_line() {
    let own = Arguments::of_process(std::process::id() as i32).unwrap();
    assert_eq!(own.words().to_vec(), std::env::args().collect::<Vec<_>>());
    assert!(Arguments::of_process(i32::MAX).is_err());
}

/// An option as somebody may have written it.
fn option() -> impl Strategy<Value = Vec<String>> {
    let fixed = proptest::sample::select(vec![
        "-S",
        "--daemonize",
        "-snapshot",
        "-mem-path /x",
        "-incoming tcp:0:1",
        "-incoming",
        "-pidfile /p",
        "-loadvm a",
        "-qmp unix:/q,,=1,server,nowait",
        "-serial unix:/s=1,server",
        "-monitor tcp::1,server=on",
        "-chardev socket,id=a,path=/a,server=on",
        "-chardev socket,id=whimbrel-monitor,path=/old,server=on,wait=off",
        "-mon chardev=whimbrel-monitor,mode=control",
        "-mon whimbrel-monitor,mode=control",
        "-object memory-backend-file,id=ram,size=1G,mem-path=/a,,b,share=on",
        r#"-object {"qom-type":"memory-backend-file","size":7,"mem-path":"/a","id":"pc.ram","share":true}"#,
        "disk.img",
        "-",
    ]);
    let any = proptest::collection::vec("-{0,2}[a-zS,=:{}]{0,9}", 1..3);
    prop_oneof![
        3 => fixed.prop_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>()),
        1 => any,
    ]
}

proptest! {
    #[test]
    fn a_second_hop_is_as_the_first(options in proptest::collection::vec(option(), 0..8)) {
        let words: Vec<String> = std::iter::once("kvm".to_owned()).chain(options.into_iter().flatten()).collect();
        let here = Arguments::parse(words);
        let there = Arguments::parse(here.for_destination(&plan(1)));
        prop_assert_eq!(there.for_destination(&plan(2)), here.for_destination(&plan(2)));
        prop_assert_eq!(there.name(), here.name());
        let monitors = here.monitors().len() + 1;
        prop_assert!(there.monitors().contains(&plan(1).monitor));
        prop_assert!(there.monitors().len() <= monitors);
        prop_assert_eq!(there.words().iter().filter(|word| *word == "defer").count(), 1);
        let _ = (here.files(), here.devices(), here.unfit(), here.memory());
    }
}
