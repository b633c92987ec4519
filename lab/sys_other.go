//go:build !linux

package lab

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// Elsewhere the package compiles, and preflight turns every caller away before any of this is reached.

const linux = false

func hostAttr() *syscall.SysProcAttr              { return nil }
func detachedAttr() *syscall.SysProcAttr          { return nil }
func groupAttr() *syscall.SysProcAttr             { return nil }
func keepDescriptors()                            {}
func killGroup(int) error                         { return errors.ErrUnsupported }
func signalProcess(process, syscall.Signal) error { return errors.ErrUnsupported }
func tryLock(*os.File) (bool, error)              { return false, errors.ErrUnsupported }
func hideLower(string) error                      { return errors.ErrUnsupported }
func takeRoom(string) error                       { return errors.ErrUnsupported }
func holdWrites(string, bool) error               { return errors.ErrUnsupported }

func shiftClock(context.Context, process, time.Duration, bool) error { return errors.ErrUnsupported }
func atExec(context.Context, process, func() error) error            { return errors.ErrUnsupported }

const sigTerm, sigKill, sigStop, sigCont syscall.Signal = 15, 9, 19, 18
