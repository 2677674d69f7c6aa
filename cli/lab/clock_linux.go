package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A machine has one clock, and the kernel's time namespaces leave out the one that people set. What a process takes for the time of day is
// nevertheless its own: it asks a routine that the kernel has mapped into it (the vDSO, vdso(7)). A clock replaces that routine before the
// process has executed its first instruction, as Chaos Mesh's TimeChaos does to running ones. The program is not prepared for it and all of
// it is deceived: a jump looks as one by settimeofday does, and the monotonic clock goes on. Programs that it starts are not concerned.
type clock struct {
	lock   sync.Mutex
	ahead  time.Duration
	memory *os.File // of the process that runs
	at     int64    // of the routine in it
}

// skewedGettime is clock_gettime(2) for amd64, in at most 902 bytes, the length of the kernel's own: the system call, and for CLOCK_REALTIME
// two numbers added, which follow the code.
//
//	mov eax, 228; syscall; test edi, edi; jne end
//	mov rcx, [seconds]; mov rdx, [nanoseconds]; add rdx, [rsi+8]
//	cmp rdx, 1000000000; jl store; sub rdx, 1000000000; inc rcx
//	store: mov [rsi+8], rdx; add [rsi], rcx
//	end: ret
var skewedGettime = []byte{
	0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05, 0x85, 0xff, 0x75, 0x2c,
	0x48, 0x8b, 0x0d, 0x26, 0, 0, 0, 0x48, 0x8b, 0x15, 0x27, 0, 0, 0, 0x48, 0x03, 0x56, 0x08,
	0x48, 0x81, 0xfa, 0x00, 0xca, 0x9a, 0x3b, 0x7c, 0x0a, 0x48, 0x81, 0xea, 0x00, 0xca, 0x9a, 0x3b, 0x48, 0xff, 0xc1,
	0x48, 0x89, 0x56, 0x08, 0x48, 0x01, 0x0e,
	0xc3,
}

// skewOffset is where the two numbers lie behind the beginning of the code.
const skewOffset = 0x38

// numbers are what the code adds: seconds, rounded down, and nanoseconds.
func (c *clock) numbers() []byte {
	seconds, rest := c.ahead/time.Second, c.ahead%time.Second
	if rest < 0 {
		seconds, rest = seconds-1, rest+time.Second
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(seconds))
	return binary.LittleEndian.AppendUint64(b, uint64(rest))
}

// start starts a command whose process has this clock. It must be called on a thread that is locked: only the thread that traces a process
// may let it go.
func (c *clock) start(command *exec.Cmd) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("clocks that can be set wrong need amd64, not %s", runtime.GOARCH)
	}
	command.SysProcAttr.Ptrace = true // it stops once it has been executed
	if err := command.Start(); err != nil {
		return err
	}
	pid := command.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	if !status.Stopped() {
		return fmt.Errorf("process %d ended before it began", pid)
	}
	if err := c.replace(pid); err != nil {
		return errors.Join(fmt.Errorf("giving process %d a clock of its own: %w", pid, err), command.Process.Kill())
	}
	return syscall.PtraceDetach(pid)
}

// replace writes the routine into a process that stands still.
func (c *clock) replace(pid int) error {
	base, err := vdsoOf(pid)
	if err != nil {
		return err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	offset, err := gettimeIn(memory, base)
	c.lock.Lock()
	defer c.lock.Unlock()
	if err == nil {
		code := append(bytes.Clone(skewedGettime), make([]byte, skewOffset-len(skewedGettime))...)
		_, err = memory.WriteAt(append(code, c.numbers()...), base+offset)
	}
	if err != nil {
		return errors.Join(err, memory.Close())
	}
	if c.memory != nil {
		c.memory.Close() // of the process before
	}
	c.memory, c.at = memory, base+offset
	return nil
}

// vdsoOf is where the kernel has mapped its routines, by the auxiliary vector (getauxval(3), AT_SYSINFO_EHDR).
func vdsoOf(pid int) (int64, error) {
	const sysinfoEhdr, word = 33, 8
	vector, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, err
	}
	for ; len(vector) >= 2*word; vector = vector[2*word:] {
		if binary.LittleEndian.Uint64(vector) == sysinfoEhdr {
			return int64(binary.LittleEndian.Uint64(vector[word:])), nil
		}
	}
	return 0, errors.New("the kernel maps no vDSO")
}

// gettimeIn finds clock_gettime in the mapped library.
func gettimeIn(memory *os.File, base int64) (int64, error) {
	image := make([]byte, 2*os.Getpagesize())
	if _, err := memory.ReadAt(image, base); err != nil {
		return 0, err
	}
	library, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, err
	}
	symbols, err := library.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for _, symbol := range symbols {
		if symbol.Name == "__vdso_clock_gettime" && symbol.Size >= skewOffset+16 {
			return int64(symbol.Value), nil
		}
	}
	return 0, errors.New("the vDSO has no clock_gettime")
}

// set moves the clock, of the process that runs and of those that follow.
func (c *clock) set(ahead time.Duration, runs bool) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.ahead = ahead
	if c.memory == nil || !runs {
		return nil
	}
	_, err := c.memory.WriteAt(c.numbers(), c.at+skewOffset)
	return err
}

func (c *clock) close() {
	c.lock.Lock()
	defer c.lock.Unlock()
	if c.memory != nil {
		c.memory.Close()
		c.memory = nil
	}
}

// SetClock sets the peer's clock so far ahead of the machine's, or behind it if negative: at once, also while the peer runs, and for the
// processes that are started later. The lab must have been opened with Config.Clocks. Commands and containers keep the machine's time.
func (p *Peer) SetClock(ahead time.Duration) error {
	if p.clock == nil {
		return fmt.Errorf("%s has the machine's clock: the lab was opened without Config.Clocks", p.Name)
	}
	if err := p.clock.set(ahead, p.Pid() != 0); err != nil {
		return fmt.Errorf("setting the clock of %s: %w", p.Name, err)
	}
	return nil
}
