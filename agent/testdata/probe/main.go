// Probe is what the containers of the agent's tests run. Its first argument says what it does; all tell on their
// standard output what they see of their surroundings.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Report is the first line of every probe's log.
type Report struct {
	UID      int
	Dir      string
	Hostname string
	Env      []string
	Args     []string
	NoFile   uint64
	Hosts    string
	Resolv   string
	CapEff   string
	Groups   []int
	// Writable says of some directories whether a file can be made in them.
	Writable map[string]bool
	Somaxcon string
	Addrs    []string
}

func main() {
	// Whoever has read the report may rely on signals being handled.
	stop := make(chan os.Signal, 1)
	switch os.Args[1] {
	case "serve":
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
	}
	report()
	switch os.Args[1] {
	case "exit": // exit CODE [AFTER]
		if len(os.Args) > 3 {
			d, _ := time.ParseDuration(os.Args[3])
			time.Sleep(d)
		}
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "serve": // until a stop signal, then exit with CODE
		fmt.Fprintln(os.Stderr, "got", <-stop)
		code := 0
		if len(os.Args) > 2 {
			code, _ = strconv.Atoi(os.Args[2])
		}
		os.Exit(code)
	case "deaf": // ignores stop signals
		time.Sleep(time.Hour)
	case "stat": // stat PATH: a health check, succeeds if the path exists
		if _, err := os.Stat(os.Args[2]); err != nil {
			os.Exit(1)
		}
	case "create": // create PATH
		if err := os.WriteFile(os.Args[2], nil, 0o644); err != nil {
			os.Exit(1)
		}
	}
}

func report() {
	r := Report{UID: os.Getuid(), Env: os.Environ(), Args: os.Args, Writable: map[string]bool{}}
	r.Dir, _ = os.Getwd()
	r.Hostname, _ = os.Hostname()
	r.Groups, _ = os.Getgroups()
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		r.NoFile = l.Max
	}
	r.Hosts, r.Resolv, r.Somaxcon = read("/etc/hosts"), read("/etc/resolv.conf"), read("/proc/sys/net/core/somaxconn")
	for _, line := range strings.Split(read("/proc/self/status"), "\n") {
		if v, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
			r.CapEff = v
		}
	}
	for _, dir := range []string{"/", "/bind", "/bindro", "/vol", "/scratch"} {
		f, err := os.CreateTemp(dir, "probe")
		if r.Writable[dir] = err == nil; err == nil {
			f.Close()
			os.Remove(f.Name())
		}
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		r.Addrs = append(r.Addrs, a.String())
	}
	data, _ := json.Marshal(r)
	fmt.Println(string(data))
}

func read(path string) string {
	data, _ := os.ReadFile(path)
	return strings.TrimSpace(string(data))
}
