package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// loss is a share of the frames between two hosts that the switch drops.
type loss struct {
	// From and To are names of hosts; "" is everybody, the machine and the registry included.
	From, To string
	// Percent of the frames are lost; 100 is a cable that is broken in this one direction.
	Percent int
}

func (f loss) String() string {
	all := func(host string) string {
		if host == "" {
			return "all"
		}
		return host
	}
	return fmt.Sprintf("%s->%s loses %d%%", all(f.From), all(f.To), f.Percent)
}

func (f loss) touches(host string) bool { return f.From == host || f.To == host }

// Lose drops that percentage of the frames that travel from one host to another, and of no others: 100 is a network that is
// broken in one direction. An empty name means everybody, the machine and the registry included. What was said before about
// the same two in the same direction is replaced; Heal of either of the two ends it, and so does 0.
func (l *Lab) Lose(ctx context.Context, from, to string, percent int) error {
	if percent < 0 || percent > 100 || from == to {
		return fmt.Errorf("lose %d %% of the frames from %q to %q: a share is 0 to 100 %%, between two hosts", percent, from, to)
	}
	return l.changeLosses(ctx, func(r *record) error {
		for _, name := range []string{from, to} {
			if name == "" {
				continue
			}
			if _, err := r.host(name); err != nil {
				return err
			}
		}
		r.Losses = slices.DeleteFunc(r.Losses, func(f loss) bool { return f.From == from && f.To == to })
		if percent > 0 {
			r.Losses = append(r.Losses, loss{from, to, percent})
		}
		return nil
	})
}

// changeLosses changes the record and the switch alike, while nobody else does.
func (l *Lab) changeLosses(ctx context.Context, change func(*record) error) error {
	if err := Check(); err != nil {
		return err
	}
	return l.update(ctx, func(r *record) error {
		before := slices.Clone(r.Losses)
		if err := change(r); err != nil {
			return err
		}
		if slices.Equal(before, r.Losses) {
			return nil
		}
		return l.fabric().lose(ctx, r.Losses)
	})
}

// lose makes the switch drop these shares and no others. A port on the bridge is named after its host, so the rules outlive
// a host that is switched off and on.
func (f fabric) lose(ctx context.Context, losses []loss) error {
	if _, err := run(ctx, lossRules(losses), "nsenter", "--net=/run/netns/"+f.space, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("faults of the switch: %w", err)
	}
	return nil
}

// lossRules is the whole table, for nft to put in the place of what is there in one step.
func lossRules(losses []loss) string {
	var forward, input, output strings.Builder
	for _, l := range losses {
		verdict := "drop"
		if l.Percent < 100 {
			verdict = fmt.Sprintf("numgen random mod 100 < %d drop", l.Percent)
		}
		in, out := "", ""
		if l.From != "" {
			in = fmt.Sprintf("iifname %q ", l.From)
		}
		if l.To != "" {
			out = fmt.Sprintf("oifname %q ", l.To)
		}
		fmt.Fprintf(&forward, "\t\t%s%s%s\n", in, out, verdict)
		// The registry is the switch's own: what it is sent and sends is not forwarded.
		if l.To == "" {
			fmt.Fprintf(&input, "\t\t%s%s\n", in, verdict)
		}
		if l.From == "" {
			fmt.Fprintf(&output, "\t\t%s%s\n", out, verdict)
		}
	}
	chain := func(name string, rules strings.Builder) string {
		return fmt.Sprintf("\tchain %s {\n\t\ttype filter hook %s priority 0; policy accept;\n%s\t}\n", name, name, rules.String())
	}
	return "table bridge lab\ndelete table bridge lab\ntable bridge lab {\n" + chain("forward", forward) + chain("input", input) + chain("output", output) + "}\n"
}
