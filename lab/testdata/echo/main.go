// Command echo is the content of the test's containers: `echo listen ADDR` greets whoever connects and then listens
// until they leave; `echo dial ADDR` waits at most a second for that greeting; `echo hold ADDR` then stays connected
// and, two seconds later, says how the connection is: "silent", or in which way it ended.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(verb, addr string) error {
	if verb == "listen" {
		return listen(addr)
	}
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	greeting := make([]byte, 1)
	if _, err := io.ReadFull(c, greeting); err != nil || verb == "dial" {
		return err
	}
	fmt.Println("connected")
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = c.Read(greeting)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		fmt.Println("silent")
	} else {
		fmt.Println(err)
	}
	return nil
}

func listen(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	done := make(chan os.Signal, 1)
	signal.Notify(done, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-done
		ln.Close()
	}()
	for {
		c, err := ln.Accept()
		if err != nil {
			return nil // closed: the end was asked for
		}
		go func() {
			defer c.Close()
			_, _ = c.Write([]byte("!"))
			_, _ = io.Copy(io.Discard, c)
		}()
	}
}
