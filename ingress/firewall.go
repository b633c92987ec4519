package ingress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// firewall keeps a rule in the machine's chains of forwarded packets, which lets connections of the mesh pass. Docker drops
// what is forwarded to containers from outside, and no verdict in a table of ours could overrule that. The rule is changed with
// the iptables command because Docker uses that too, whether it writes to nftables or to the older kernel interface.
//
// It is there twice. DOCKER-USER is the chain that Docker leaves to others. But with every network that it makes Docker takes the
// jump to that chain out, and in again some milliseconds later: the first packet of a connection that came in between would be
// dropped, and sent again after a second. So the rule is in FORWARD as well, before all jumps of Docker's, which only for a moment
// stand before it; what others have put further up goes on deciding first.
//
// The command waits for others who are changing rules, up to five seconds, so
// whoever is to stay quick calls check before taking a lock that others need.
type firewall struct {
	mu       sync.Mutex  // held while rules are changed
	asserted atomic.Bool // the rules were there when last looked for
}

const (
	forward    = "FORWARD"
	dockerUser = "DOCKER-USER"
	// dockerJump begins a rule of FORWARD that leads into a chain of Docker's.
	dockerJump = "-j DOCKER"
)

// acceptRule is the rule as iptables prints it, without its chain.
func acceptRule() []string {
	return []string{"-m", "connmark", "--mark", fmt.Sprintf("%#x/%#x", plan.MarkOurs, plan.MarkMask),
		"-m", "comment", "--comment", "miniswarm", "-j", "ACCEPT"}
}

func inChain(command, chain string) []string {
	return append([]string{command, chain}, acceptRule()...)
}

// assert makes sure of the rules unless they were there already.
func (f *firewall) assert(ctx context.Context) error {
	if f.asserted.Load() {
		return nil
	}
	return f.check(ctx)
}

// check looks for the rules and adds them, before or after Docker made its chains.
func (f *firewall) check(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := iptables(ctx, inChain("-C", dockerUser)...)
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		// Docker takes a chain that exists as it is.
		if err = iptables(ctx, "-N", dockerUser); err == nil || chainExists(err) {
			err = iptables(ctx, inChain("-I", dockerUser)...)
		}
	}
	if err == nil {
		err = lead(ctx)
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

// lead puts the rule before Docker's in FORWARD, once there are any.
func lead(ctx context.Context) error {
	list, err := output(ctx, "", "iptables", "-w", "5", "-S", forward)
	if err != nil {
		return err
	}
	at, found := placeInForward(list)
	if at == 0 || !found && iptables(ctx, inChain("-C", forward)...) == nil { // which is printed in a way that we do not know
		return nil
	}
	rule := strings.Join(acceptRule(), " ")
	change := fmt.Sprintf("-I %s %d %s\n", forward, at, rule)
	if found {
		change = fmt.Sprintf("-D %s %s\n", forward, rule) + change
	}
	// In one transaction, so that there is no moment without it.
	_, err = output(ctx, "*filter\n"+change+"COMMIT\n", "iptables-restore", "--noflush", "-w", "5")
	return err
}

// placeInForward reads FORWARD as iptables lists it. It says at which number the rule is to be put, 0 for nowhere since it is where it
// belongs or Docker has no rules to go before, and whether it is somewhere already.
func placeInForward(list string) (at int, found bool) {
	rule, n, behind := strings.Join(acceptRule(), " "), 0, false
	for line := range strings.Lines(list) {
		has, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "+forward+" ")
		if !ok {
			continue
		}
		n++
		switch {
		case has == rule && !behind:
			return 0, true
		case has == rule:
			found = true
		case strings.Contains(has, dockerJump):
			if at == 0 {
				at = n
			}
			behind = behind || !strings.HasSuffix(has, " "+dockerUser)
		}
	}
	return at, found
}

// remove takes the rules away, and the chain if nobody uses it.
func (f *firewall) remove(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asserted.Store(false)
	for _, chain := range []string{forward, dockerUser} {
		for {
			err := iptables(ctx, inChain("-D", chain)...)
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
		if err := iptables(ctx, inChain("-C", chain)...); err == nil {
			return fmt.Errorf("take the mesh's rule out of chain %s of the firewall: it is still there", chain)
		}
	}
	// Refused while Docker jumps to it or has rules in it, as it should be.
	_ = iptables(ctx, "-X", dockerUser)
	return nil
}

func chainExists(err error) bool { return strings.Contains(err.Error(), "already exists") }

// iptables runs the command; -w waits for others who are changing rules.
func iptables(ctx context.Context, args ...string) error {
	_, err := output(ctx, "", "iptables", append([]string{"-w", "5"}, args...)...)
	return err
}

// output runs a command and returns what it prints.
func output(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return string(out), nil
}
