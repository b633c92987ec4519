// Command witness is what the tests run in containers: a server that says who asked and who answered, over HTTP, TCP
// and UDP, and the clients that ask it.
//
//	witness                  serve HTTP on 8000, lines over TCP on 8001, datagrams on 8002
//	witness get URL          print the body of an answer with status 200
//	witness udp HOST:PORT    print the answer to one datagram
//	witness lookup NAME      print the addresses of a name
//	witness names ADDR       print the names of an address
//	witness load URL         ask without pause, each time over a new connection, and show on 8000 how that goes
//	witness say WORD...      print the words and end
//	witness file PATH...     describe files and print what is in them
//	witness cat              repeat the input until it ends
//	witness exit CODE        end with that code
//	witness terminal         print the terminal's size whenever it changes, until a line of input is "end"
//	witness work TIME [CODE] do nothing for that long, and end with that exit code
//	witness hold HOST:PORT   listen there, and hang up on whoever calls, until killed
//
// VERSION in its environment is repeated in each answer, DRAIN is how long it serves on after SIGTERM.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"
)

// answer is what every protocol replies.
type answer struct {
	Replica string // host name of the server's container
	Client  string // address of the asker as the server sees it
	Version string
	Line    string `json:",omitempty"` // what was asked over TCP
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "witness:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 0:
		return serve()
	case args[0] == "get" && len(args) == 2:
		return get(args[1])
	case args[0] == "udp" && len(args) == 2:
		return askUDP(args[1])
	case args[0] == "lookup" && len(args) == 2:
		return printLines(net.LookupHost(args[1]))
	case args[0] == "names" && len(args) == 2:
		return printLines(net.LookupAddr(args[1]))
	case args[0] == "load" && len(args) == 2:
		return load(args[1])
	case args[0] == "say":
		fmt.Println(strings.Join(args[1:], " "))
		return nil
	case args[0] == "file":
		return show(args[1:])
	case args[0] == "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case args[0] == "exit" && len(args) == 2:
		code, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		os.Exit(code)
	case args[0] == "terminal":
		return watchTerminal()
	case args[0] == "work" && (len(args) == 2 || len(args) == 3):
		return work(args[1:])
	case args[0] == "hold" && len(args) == 2:
		ln, err := net.Listen("tcp", args[1])
		if err != nil {
			return err
		}
		fmt.Println("holding", ln.Addr())
		for {
			conn, err := ln.Accept()
			if err != nil {
				return err
			}
			conn.Close()
		}
	}
	return fmt.Errorf("unknown command %q", args)
}

func work(args []string) error {
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	code := 0
	if len(args) == 2 {
		if code, err = strconv.Atoi(args[1]); err != nil {
			return err
		}
	}
	fmt.Println("working")
	time.Sleep(d)
	os.Exit(code)
	return nil
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	reply := func(client net.Addr, line string) []byte {
		b, _ := json.Marshal(answer{Replica: host, Client: client.String(), Version: os.Getenv("VERSION"), Line: line})
		return append(b, '\n')
	}

	lines, err := net.Listen("tcp", ":8001")
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := lines.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for in := bufio.NewScanner(conn); in.Scan(); {
					if _, err := conn.Write(reply(conn.RemoteAddr(), in.Text())); err != nil {
						return
					}
				}
			}()
		}
	}()
	datagrams, err := net.ListenPacket("udp", ":8002")
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := datagrams.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = datagrams.WriteTo(reply(from, ""), from)
		}
	}()

	server := &http.Server{Addr: ":8000", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _ := net.ResolveTCPAddr("tcp", r.RemoteAddr)
		fmt.Println(r.Method, r.URL, "from", r.RemoteAddr)
		_, _ = w.Write(reply(client, ""))
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	fmt.Println("serving")
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drain, _ := time.ParseDuration(os.Getenv("DRAIN"))
	time.Sleep(drain)
	fmt.Println("stopping")
	return server.Shutdown(context.Background())
}

func get(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// file is what show tells of a file.
type file struct {
	Path, Mode string
	UID, GID   uint32
	Tmpfs      bool
	ReadOnly   bool
	Data       string
}

func show(paths []string) error {
	enc := json.NewEncoder(os.Stdout)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f := file{Path: path, Data: string(data)}
		var st syscall.Stat_t
		var fs syscall.Statfs_t
		if err := errors.Join(syscall.Stat(path, &st), syscall.Statfs(path, &fs)); err != nil {
			return err
		}
		const tmpfs, readOnly = 0x01021994, 1 // statfs(2)
		f.Mode, f.UID, f.GID = fmt.Sprintf("%04o", st.Mode&0o7777), st.Uid, st.Gid
		f.Tmpfs, f.ReadOnly = fs.Type == tmpfs, fs.Flags&readOnly != 0
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

func askUDP(addr string) error {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 2048)
	for range 5 {
		if _, err := conn.Write([]byte("who")); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := conn.Read(buf); err == nil {
			_, err = os.Stdout.Write(buf[:n])
			return err
		}
	}
	return fmt.Errorf("%s does not answer", addr)
}

// watchTerminal says how large its terminal is.
func watchTerminal() error {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		for {
			if w, h, err := term.GetSize(int(os.Stdin.Fd())); err == nil {
				fmt.Printf("size %dx%d\n", w, h)
			}
			<-changed
		}
	}()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "end" {
			return nil
		}
	}
	return errors.New("the input ended")
}

func printLines(lines []string, err error) error {
	for _, l := range lines {
		fmt.Println(l)
	}
	return err
}

// tally is how asking without pause goes.
type tally struct {
	Asked, Failed int
	First         string         // the first failure
	Replicas      map[string]int // answers by replica
}

func load(url string) error {
	var mu sync.Mutex
	t := tally{Replicas: map[string]int{}}
	go func() {
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for ; ; time.Sleep(10 * time.Millisecond) {
			a, err := once(&client, url)
			mu.Lock()
			t.Asked++
			t.Replicas[a.Replica]++
			if err != nil {
				fmt.Println(time.Now().Format(time.StampMilli), err)
				if t.Failed++; t.First == "" {
					t.First = err.Error()
				}
			}
			mu.Unlock()
		}
	}()
	return http.ListenAndServe(":8000", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(t)
	}))
}

func once(client *http.Client, url string) (a answer, err error) {
	resp, err := client.Get(url)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	return a, json.NewDecoder(resp.Body).Decode(&a)
}
