package ingress

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// firewall keeps one rule in Docker's chain DOCKER-USER, which lets connections of
// the mesh pass. Docker drops what is forwarded to containers from outside, no
// verdict in a table of ours could overrule that, and DOCKER-USER is the chain
// Docker leaves to others. It is changed with the iptables command because Docker
// uses that too, whether it writes to nftables or to the older kernel interface.
//
// The command waits for others who are changing rules, up to five seconds, so
// whoever is to stay quick calls check before taking a lock that others need.
type firewall struct {
	mu       sync.Mutex  // held while rules are changed
	asserted atomic.Bool // the rule was there when last looked for
}

const dockerUser = "DOCKER-USER"

func acceptRule() []string {
	return []string{dockerUser, "-m", "connmark", "--mark", fmt.Sprintf("%#x/%#x", plan.MarkOurs, plan.MarkMask),
		"-m", "comment", "--comment", "miniswarm", "-j", "ACCEPT"}
}

// assert makes sure of the rule unless it was there already.
func (f *firewall) assert(ctx context.Context) error {
	if f.asserted.Load() {
		return nil
	}
	return f.check(ctx)
}

// check looks for the rule and adds it, before or after Docker made its chain.
func (f *firewall) check(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := iptables(ctx, append([]string{"-C"}, acceptRule()...)...)
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		// Docker takes a chain that exists as it is.
		if err = iptables(ctx, "-N", dockerUser); err == nil || chainExists(err) {
			err = iptables(ctx, append([]string{"-I"}, acceptRule()...)...)
		}
	}
	if errors.Is(err, exec.ErrNotFound) {
		err = nil // no iptables, so Docker does without as well
	}
	f.asserted.Store(err == nil)
	if err != nil {
		return fmt.Errorf("let the mesh pass Docker's firewall: %w", err)
	}
	return nil
}

// remove takes the rule away, and the chain if nobody uses it.
func (f *firewall) remove(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asserted.Store(false)
	for {
		err := iptables(ctx, append([]string{"-D"}, acceptRule()...)...)
		if errors.Is(err, exec.ErrNotFound) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err != nil {
			break // no more of them
		}
	}
	if err := iptables(ctx, append([]string{"-C"}, acceptRule()...)...); err == nil {
		return errors.New("take the mesh's rule out of Docker's firewall: it is still there")
	}
	// Refused while Docker jumps to it or has rules in it, as it should be.
	_ = iptables(ctx, "-X", dockerUser)
	return nil
}

func chainExists(err error) bool { return strings.Contains(err.Error(), "already exists") }

// iptables runs the command; -w waits for others who are changing rules.
func iptables(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "iptables", append([]string{"-w", "5"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
