// Command jobs is what the jobs of this directory's Compose file run: work that ends.
//
//	jobs count FROM TO    count the primes of one share of a range
//	jobs survey           say what machine this is
//
// count takes its share from the environment: SHARE, counted from 0, of SHARES, the pieces into which the range is cut.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "jobs:", err)
		os.Exit(1)
	}
}

func run(args []string, getenv func(string) string, out io.Writer) error {
	switch {
	case len(args) == 3 && args[0] == "count":
		return count(args[1], args[2], getenv, out)
	case len(args) == 1 && args[0] == "survey":
		return survey(getenv("NODE"), out)
	}
	return errors.New("say what to do: count FROM TO, or survey")
}

func count(from, to string, getenv func(string) string, out io.Writer) error {
	var numbers [4]int
	for i, n := range []struct{ name, text string }{{"FROM", from}, {"TO", to}, {"SHARE", getenv("SHARE")}, {"SHARES", getenv("SHARES")}} {
		v, err := strconv.Atoi(n.text)
		if err != nil || v < 0 {
			return fmt.Errorf("%s must be a number, not %q", n.name, n.text)
		}
		numbers[i] = v
	}
	first, last, share, shares := numbers[0], numbers[1], numbers[2], numbers[3]
	if share >= shares {
		return fmt.Errorf("SHARE must be less than SHARES: there is no share %d of %d", share, shares)
	}
	size := max(0, last-first+1)
	begin, end := first+size*share/shares, first+size*(share+1)/shares
	primes := 0
	for n := begin; n < end; n++ {
		if isPrime(n) {
			primes++
		}
	}
	fmt.Fprintf(out, "share %d of %d: %d primes from %d to %d\n", share, shares, primes, begin, end-1)
	return nil
}

func isPrime(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

func survey(node string, out io.Writer) error {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return fmt.Errorf("kernel of this machine: %w", err)
	}
	fmt.Fprintf(out, "%s: Linux %s, %d processors, %s\n", node, strings.TrimSpace(string(kernel)), runtime.NumCPU(), runtime.GOARCH)
	return nil
}
