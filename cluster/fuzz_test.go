package cluster

import "testing"

// FuzzLabels reads what users write into the labels that carry what Docker's API has no field for.
func FuzzLabels(f *testing.F) {
	for _, s := range []string{"", "all", "device:/dev/kvm:rwm", "/dev/kvm:/dev/kvm:rwm,/dev/null", "all,device=0", "count=2,capabilities=gpu", "privileged,devices", ",,", "a=b=c:d"} {
		f.Add(s, s)
	}
	names := []string{LabelDevices, LabelGPUs, LabelPrivileged}
	f.Fuzz(func(t *testing.T, a, b string) {
		if got, err := ParseAllowance(a); err == nil {
			if again, err := ParseAllowance(got.String()); err != nil || again != got {
				t.Fatalf("%q means %+v, which is written %q and means %+v, %v then", a, got, got, again, err)
			}
		}
		for _, n := range names {
			for _, m := range names {
				_, _ = ParseExtras(map[string]string{n: a, m: b})
			}
		}
	})
}
