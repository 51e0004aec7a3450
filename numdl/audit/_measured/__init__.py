"""What is measured of a case: its views, its programs, its function, its head, its kernel, its optimizer, its data."""
