"""What distillation is made of: what the teacher says, the texts it says it of, students, and their losses."""
