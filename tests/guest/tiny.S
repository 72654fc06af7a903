# The guest of `make kvm-test`, in the place of the firmware: it writes 32 MiB over and over in long mode, and looks each time whether they
# hold what was written before. A line after each pass: T, its number, E, how many words were wrong, each number 8 hexadecimal digits.
# There are no interrupts. Whatever goes wrong with the processor resets the machine, so that the numbers begin again.
#
# The loop runs as a user program would, with the right to use the serial line: a /dev/kvm that is made of software (kvm_pvm) lets the
# processor run nothing else, and emulates each instruction of the rest. Real firmware would need minutes there.

.set BEGIN, 0x200000
.set END, BEGIN + 0x2000000
# One word in so many bytes: a page has eight of them.
.set STEP, 512
.set SERIAL, 0x3f8
.set STACK, 0x7c00
# Selectors with the rights of user programs, and the flags: all ports for everybody (IOPL 3), no interrupts.
.set USER_CODE, 0x1b
.set USER_DATA, 0x13
.set FLAGS, 0x3002
# The size of the image, and where the processor sees its end as long as it is in real mode.
.set IMAGE, 0x10000
.set ROM_SEGMENT, 0xf000

# Page tables: one each of levels 4 and 3, and a level 2 whose 2 MiB pages map 128 MiB to themselves.
.set LEVEL4, 0x1000
.set LEVEL3, 0x2000
.set LEVEL2, 0x3000
.set LEVEL2_END, LEVEL2 + 64 * 8
# Present, writable, also for user programs.
.set PRESENT, 7
.set LARGE, 0x80

.code16
.globl _start
_start:
  cli
  cld
  xorw %ax, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  # Address line 20.
  inb $0x92, %al
  orb $2, %al
  outb %al, $0x92
  xorw %ax, %ax
  movw $LEVEL4, %di
  movw $0x1800, %cx
  rep stosw
  movl $LEVEL3 + PRESENT, LEVEL4
  movl $LEVEL2 + PRESENT, LEVEL3
  movl $PRESENT + LARGE, %eax
  movw $LEVEL2, %di
1:
  movl %eax, (%di)
  addl $0x200000, %eax
  addw $8, %di
  cmpw $LEVEL2_END, %di
  jb 1b
  lgdt table_of_segments
  # CR4.PAE, EFER.LME, then CR0.PG and CR0.PE.
  movl %cr4, %eax
  orl $0x20, %eax
  movl %eax, %cr4
  movl $LEVEL4, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl %cr0, %eax
  orl $0x80000001, %eax
  movl %eax, %cr0
  ljmp $8, $long_mode

.code64
long_mode:
  movl $USER_DATA, %eax
  movw %ax, %ds
  movw %ax, %es
  xorl %ecx, %ecx
  movw %cx, %ss
  movl $STACK, %esp
  pushq $USER_DATA
  pushq $STACK
  pushq $FLAGS
  pushq $USER_CODE
  pushq $user
  iretq
user:
  # Number of the pass, and of errors.
  xorl %ebp, %ebp
  xorl %r15d, %r15d
pass:
  # A word holds the number of the pass that wrote it, and its own address.
  movl %ebp, %r8d
  shlq $32, %r8
  leal -1(%rbp), %r9d
  shlq $32, %r9
  movl $BEGIN, %edi
1:
  # The first pass finds anything.
  testl %ebp, %ebp
  jz 2f
  leaq (%r9, %rdi), %rax
  cmpq %rax, (%rdi)
  je 2f
  incl %r15d
2:
  leaq (%r8, %rdi), %rax
  movq %rax, (%rdi)
  addq $STEP, %rdi
  cmpq $END, %rdi
  jb 1b
  movb $'T', %bl
  call put
  movl %ebp, %esi
  call put_number
  movb $'E', %bl
  call put
  movl %r15d, %esi
  call put_number
  movb $'\n', %bl
  call put
  incl %ebp
  jmp pass

# %bl to the serial line, when it has room: a line that is not read must not lose anything.
put:
  movw $SERIAL + 5, %dx
1:
  inb %dx, %al
  testb $0x20, %al
  jz 1b
  movb %bl, %al
  movw $SERIAL, %dx
  outb %al, %dx
  ret

# %esi, the highest digit first.
put_number:
  movl $8, %ecx
1:
  roll $4, %esi
  movb %sil, %bl
  andb $15, %bl
  addb $'0', %bl
  cmpb $'9', %bl
  jbe 2f
  addb $'a' - '9' - 1, %bl
2:
  call put
  loop 1b
  ret

.balign 8
segments:
  .quad 0, 0x00af9b000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
table_of_segments:
  .word 31
  .long segments

end_of_code:

# Copied to memory, so that after a move the processor also waits for its code.
.code16
.org IMAGE - 256
copy:
  movw $ROM_SEGMENT, %ax
  movw %ax, %ds
  xorw %ax, %ax
  movw %ax, %es
  xorw %si, %si
  movw $_start, %di
  movw $(end_of_code - _start), %cx
  cld
  rep movsb
  ljmp $0, $_start

# Where a processor begins.
.org IMAGE - 16
  ljmp $ROM_SEGMENT, $(IMAGE - 256)
.org IMAGE
