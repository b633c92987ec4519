package claim

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const childVariable = "CLAIM_TEST_PORTS"

// TestAddrIsOnes claims ports in several processes at once, which hold them until all have theirs.
func TestAddrIsOnes(t *testing.T) {
	const processes, ports = 3, 300
	if os.Getenv(childVariable) != "" {
		for range ports {
			fmt.Println("claimed", Addr(t))
		}
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent has counted
		return
	}
	by := make(map[string]int)
	for i := range processes {
		child := exec.Command(os.Args[0], "-test.run=^TestAddrIsOnes$")
		child.Env = append(os.Environ(), childVariable+"=1")
		in, err := child.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			in.Close()
			if err := child.Wait(); err != nil {
				t.Error(err)
			}
		}()
		claimed := 0
		for lines := bufio.NewScanner(out); claimed < ports && lines.Scan(); {
			addr, ok := strings.CutPrefix(lines.Text(), "claimed ")
			if !ok {
				continue
			}
			claimed++
			if other, twice := by[addr]; twice {
				t.Errorf("processes %d and %d both have %s", other, i, addr)
			}
			by[addr] = i
		}
		if claimed < ports {
			t.Errorf("process %d has %d of %d ports", i, claimed, ports)
		}
	}
}

// TestAddrIsFree: what is given can be listened on, again and again, and is another one each time.
func TestAddrIsFree(t *testing.T) {
	seen := make(map[string]bool)
	for range 100 {
		addr := Addr(t).String()
		if seen[addr] {
			t.Errorf("%s was given twice", addr)
		}
		seen[addr] = true
		for range 2 {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
	}
}
