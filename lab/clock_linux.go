package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockSymbol is what programs call to learn the time, in the code that the kernel maps into them (vdso(7)).
const clockSymbol = "__vdso_clock_gettime"

// jumpSize is the size of the jump that is put where it begins.
const jumpSize = 5

// clockCode is what it jumps to: it asks the kernel by a system call, and adds to the seconds if CLOCK_REALTIME was asked for. Registers
// that it changes are those that a function may change.
func clockCode(ahead time.Duration) []byte {
	code := []byte{
		0xb8, unix.SYS_CLOCK_GETTIME & 0xff, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: CLOCK_REALTIME is 0
		0x75, 13, // jne to ret
		0x48, 0xb9, // mov rcx, seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(ahead/time.Second))
	return append(code,
		0x48, 0x01, 0x0e, // add [rsi], rcx
		0xc3) // ret
}

// shiftClock changes the code in a process by which it learns the date. If the process runs, it is stopped for that moment.
func shiftClock(ctx context.Context, p process, ahead time.Duration, running bool) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("%w: the lab knows how to shift a clock on amd64 only", errors.ErrUnsupported)
	}
	start, size, err := vdso(p.PID)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(filepath.Join("/proc", strconv.Itoa(p.PID), "mem"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	image := make([]byte, size)
	if _, err := mem.ReadAt(image, start); err != nil {
		return fmt.Errorf("read the vDSO of process %d: %w", p.PID, err)
	}
	entry, err := clockEntry(image)
	if err != nil {
		return err
	}
	// The image does not fill its last page.
	code := clockCode(ahead)
	at := size - 64
	jump := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(int32(at-entry-jumpSize)))
	if !bytes.Equal(image[entry:entry+jumpSize], jump) && len(bytes.Trim(image[at:], "\x00")) > 0 {
		return errors.New("the kernel's vDSO has no room for another clock")
	}
	if running {
		resume, err := standStill(ctx, p, start+int64(entry))
		if err != nil {
			return err
		}
		defer resume()
	}
	if _, err := mem.WriteAt(code, start+int64(at)); err != nil {
		return fmt.Errorf("write the vDSO of process %d: %w", p.PID, err)
	}
	if _, err := mem.WriteAt(jump, start+int64(entry)); err != nil {
		return fmt.Errorf("write the vDSO of process %d: %w", p.PID, err)
	}
	return nil
}

// vdso is where the kernel's code is in a process.
func vdso(pid int) (start int64, size int, err error) {
	maps, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		from, to := uint64(0), uint64(0)
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			return 0, 0, fmt.Errorf("maps of process %d: %w", pid, err)
		}
		return int64(from), int(to - from), nil
	}
	return 0, 0, fmt.Errorf("the kernel gives process %d no vDSO", pid)
}

// clockEntry finds the function in the image.
func clockEntry(image []byte) (int, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, fmt.Errorf("the kernel's vDSO: %w", err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("the kernel's vDSO: %w", err)
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == clockSymbol })
	if i < 0 || symbols[i].Size < jumpSize || symbols[i].Value+symbols[i].Size > uint64(len(image)) {
		return 0, fmt.Errorf("the kernel's vDSO has no %s", clockSymbol)
	}
	return int(symbols[i].Value), nil
}

// standStill stops all threads of a process where none is at the beginning of the function at entry, until resume is called. One that is
// stopped already stays so.
func standStill(ctx context.Context, p process, entry int64) (resume func(), err error) {
	state, _, err := stat(p.PID)
	if err != nil {
		return nil, err
	}
	resume = func() { _ = signalProcess(p, sigCont) }
	if state == 'T' {
		resume = func() {}
	}
	return resume, until(ctx, time.Millisecond, func() (bool, error) {
		if err := signalProcess(p, sigStop); err != nil {
			return false, err
		}
		still, inside, err := stopped(p.PID, entry)
		if still && inside || err != nil {
			resume()
		}
		return still && !inside, err
	}, func() error { resume(); return fmt.Errorf("process %d does not stop", p.PID) })
}

// stopped says whether all threads of a process are stopped, and whether one of them has begun the function at entry.
func stopped(pid int, entry int64) (still, inside bool, err error) {
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*"))
	if err != nil || len(threads) == 0 {
		return false, false, fmt.Errorf("process %d has ended: %w", pid, err)
	}
	for _, t := range threads {
		status, err := os.ReadFile(filepath.Join(t, "stat"))
		if err != nil {
			continue // the thread has ended
		}
		fields := strings.Fields(string(status[bytes.LastIndexByte(status, ')')+1:]))
		if len(fields) == 0 || fields[0] != "T" {
			return false, false, nil
		}
		at, err := os.ReadFile(filepath.Join(t, "syscall")) // its last field is where the thread is
		if err != nil {
			return false, false, err
		}
		words := strings.Fields(string(at))
		pc, err := strconv.ParseInt(strings.TrimPrefix(words[len(words)-1], "0x"), 16, 64)
		if err != nil {
			return false, false, nil // it runs after all
		}
		inside = inside || pc > entry && pc < entry+jumpSize
	}
	return true, inside, nil
}

// atExec does something to a process that has stopped itself, when it has become the program that it executes next, and before that runs.
func atExec(ctx context.Context, p process, do func() error) error {
	if err := until(ctx, time.Millisecond, func() (bool, error) {
		state, _, err := stat(p.PID)
		return state == 'T', err
	}, func() error { return fmt.Errorf("process %d does not stop", p.PID) }); err != nil {
		return err
	}
	runtime.LockOSThread() // a process is traced by one thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(p.PID); err != nil {
		return fmt.Errorf("trace process %d: %w", p.PID, err)
	}
	if err := unix.PtraceInterrupt(p.PID); err != nil {
		return fmt.Errorf("trace process %d: %w", p.PID, err)
	}
	first := true
	return until(ctx, time.Millisecond, func() (bool, error) {
		var status unix.WaitStatus
		switch pid, err := unix.Wait4(p.PID, &status, unix.WALL|unix.WNOHANG, nil); {
		case errors.Is(err, unix.EINTR) || err == nil && pid == 0:
			return false, nil
		case err != nil:
			return false, fmt.Errorf("trace process %d: %w", p.PID, err)
		case status.Exited() || status.Signaled():
			return false, fmt.Errorf("process %d has ended", p.PID)
		case int(status)>>8 == int(unix.SIGTRAP)|unix.PTRACE_EVENT_EXEC<<8:
			return true, errors.Join(do(), unix.PtraceDetach(p.PID))
		}
		if first {
			first = false
			if err := unix.PtraceSetOptions(p.PID, unix.PTRACE_O_TRACEEXEC); err != nil {
				return false, fmt.Errorf("trace process %d: %w", p.PID, err)
			}
			if err := signalProcess(p, sigCont); err != nil {
				return false, err
			}
		}
		return false, unix.PtraceCont(p.PID, 0)
	}, func() error { return fmt.Errorf("process %d executes nothing", p.PID) })
}
